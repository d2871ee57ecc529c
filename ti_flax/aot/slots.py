"""How many concepts one step of a topology trains at once."""

from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from ti_flax.aot import buckets
from ti_flax.aot.needs import MOST_EXAMPLES, Needs
from ti_flax.config.concepts import Config, Many
from ti_flax.config.many_keys import MOST_SLOTS
from ti_flax.models.base_model import BaseModel
from ti_flax.runtime import compilation, sharding
from ti_flax.training import room


def config_of(asked: Config | Many) -> Config:
    """Whose step is compiled: of many concepts the first's, with the most vectors."""
    if isinstance(asked, Config):
        return asked
    configs = [concept.config for concept in asked.concepts]
    vectors = max(config.num_vectors for config in configs)
    return configs[0].model_copy(update={"num_vectors": vectors})


def slots_of(
    asked: Config | Many, given: int | None, model: BaseModel, mesh: Mesh
) -> int | None:
    """Those of the run's step; None for one concept whose user says nothing."""
    if isinstance(asked, Config):
        return given
    if given is None:
        config = config_of(asked)
        latents = buckets.run_shapes(config, model).largest.latents
        given = room.unasked_slots(config, model.family, latents, mesh)
    return min(given, len(asked.own))


def told(slots: int, batch: int, mesh: Mesh) -> str:
    """What a step of so many computes; `batch` is train_batch_size."""
    a_device = sharding.padded_batch(slots * batch, mesh) // mesh.size
    return f"{slots} of train_batch_size {batch}, {a_device} examples a device"


def lines_of_most(
    needs_of: Callable[[int], Needs | None], examples: int, batch: int, mesh: Mesh
) -> Iterator[str]:
    """Says how many slots fit, as the compiler confirms.

    Args:
        needs_of: compiles for so many slots.
        examples: the most of one concept that fit on a device, to begin with.
        batch: train_batch_size.
        mesh: the devices.
    """
    first = examples * mesh.size // batch
    most = MOST_SLOTS if examples < MOST_EXAMPLES else max(first, 1)
    slots = compilation.largest(lambda n: needs_of(n) is not None, first, most)
    if slots == 0:
        yield f"  slots    not one of train_batch_size {batch} fits"
        return
    more = f"{slots + 1} do not compile" if slots < most else "no more were tried"
    yield f"  slots    {told(slots, batch, mesh)}; {more}"
