"""How many concepts of a group are trained at once: what a device has room for."""

import logging
from typing import NamedTuple

from jax.sharding import Mesh

from ti_flax.config.run_config import Config
from ti_flax.models.family import Family
from ti_flax.runtime import compilation
from ti_flax.runtime.errors import UserError
from ti_flax.step import dispatch
from ti_flax.step.abstract import RunShapes, abstract_arguments
from ti_flax.step.remat import most_slots
from ti_flax.step.train_step import StepRecipe
from ti_flax.training.inputs import Inputs
from ti_flax.training.recipe import make_recipe
from ti_flax.training.survey import Group

_log = logging.getLogger(__name__)

# Where the user says nothing, and memory allows it.
_MOST_SLOTS = 16


class Step(NamedTuple):
    """The step of a group; `shapes` say of how many slots."""

    recipe: StepRecipe
    shapes: RunShapes
    train_steps: dispatch.TrainSteps


def unasked_slots(config: Config, family: Family, latents: int, mesh: Mesh) -> int:
    """Those of a run whose user says nothing: an estimate, to be compiled.

    `latents` are those of one picture.
    """
    return most_slots(family, latents, config.train_batch_size, mesh, _MOST_SLOTS)


def begin(group: Group, shared: Inputs, slots: int) -> Step:
    """Begins to compile the group's step of so many slots."""
    shapes, family = group.shapes._replace(slots=slots), shared.model.family
    config, latents = group.concepts[0].config, shapes.largest.latents
    recipe = make_recipe(config, family, latents, shared.mesh, slots)
    arguments = abstract_arguments(recipe, shapes)
    return Step(recipe, shapes, dispatch.compile_train_steps(recipe, arguments))


def fitting(group: Group, shared: Inputs, begun: Step) -> Step:
    """`begun`, or where a device has no room for it, that of the most slots it has.

    It waits for the compiler. A run that goes on finds the same number: whichever it
    begins with, the next larger one does not fit.

    Raises:
        UserError: not even one slot fits.
    """
    slots, kept = begun.shapes.slots, begun

    def fits(count: int) -> bool:
        nonlocal kept
        step = begun if count == slots else begin(group, shared, count)
        if not step.train_steps.fits():
            return False
        kept = step
        return True

    count = compilation.largest(fits, slots, slots)
    if count == 0:
        raise UserError(dispatch.TOO_LARGE)
    if count < slots:
        _log.warning(
            "slots: a step of %d does not fit into a device's memory, of %d it does; "
            "set slots %d, and no more are tried",
            slots,
            count,
            count,
        )
    return kept
