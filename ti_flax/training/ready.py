"""All that the loop needs, from checks to arrays on the devices."""

import logging
from collections.abc import Callable
from typing import NamedTuple

from ti_flax.config import run_config
from ti_flax.runtime import compilation, profile, sharding
from ti_flax.step import dispatch
from ti_flax.step.abstract import abstract_arguments
from ti_flax.step.bank import Bank
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.slots import stack
from ti_flax.step.state import Metrics, State, init_state
from ti_flax.training import starts
from ti_flax.training.inputs import Inputs, read_inputs
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import (
    Resident,
    encode_buckets,
    load,
    make_encode,
    make_slot,
    tell_length,
)
from ti_flax.training.shapes import run_shapes
from ti_flax.training.validation import FixedLossOf
from ti_flax.training.writer import Writer

_log = logging.getLogger(__name__)


class Ready(NamedTuple):
    """All that the loop needs, on the devices; `steps.start` steps are taken."""

    inputs: Inputs
    fixed_loss: FixedLossOf
    train_steps: Callable[..., tuple[State, Metrics]]
    resident: Resident
    bank: Bank
    state: State
    steps: range


def prepare(
    config: run_config.Config, writer: Writer, progress: bool, phases: profile.Phases
) -> Ready:
    """Checks and reads everything; the step compiles while weights are read.

    Raises `UserError` for whatever a user may have got wrong.
    """
    inputs = read_inputs(config)
    sharding.warn_of_padding(config.train_batch_size, inputs.mesh)
    writer.check(inputs)
    phases.end("checks")
    _log.info("reading %s", inputs.model.source.path)
    shapes, family = run_shapes(config, inputs), inputs.model.family
    recipe = make_recipe(config, family, shapes.largest.latents, inputs.mesh)
    train_steps = dispatch.compile_train_steps(
        recipe, abstract_arguments(recipe, shapes)
    )
    # Before the other weights come, for the room.
    autoencoder = inputs.model.load(family.autoencoder.name)
    encode = make_encode(family, autoencoder)
    buckets = encode_buckets(config, inputs, encode, progress)
    resident = load(inputs, autoencoder, inputs.previews is not None)
    phases.end("weights and pictures")
    fixed_loss = compilation.compiled_together(compile_fixed_loss(recipe))
    slot = make_slot(config, inputs, resident, buckets)
    if config.num_starts > 1:
        tools = starts.Tools(recipe, resident, train_steps, fixed_loss)
        slot = starts.choose(config, inputs, writer, slot, tools, progress)
        phases.end("starts")
    tell_length(config, slot)
    rows, bank = stack([slot])
    state = init_state(rows, recipe.optimizer, recipe.window)
    steps, state = writer.restore(state)
    state, bank = sharding.replicate((state, bank), inputs.mesh)
    phases.end("initial rows, checkpoint")
    return Ready(inputs, fixed_loss, train_steps, resident, bank, state, steps)
