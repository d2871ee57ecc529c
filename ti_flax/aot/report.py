"""What `python -m ti_flax.train_compile` says of one topology."""

import functools
import logging
import time
from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jax.sharding import Mesh

from ti_flax.aot import buckets, flops, programs, slots, topologies
from ti_flax.aot.needs import MOST_EXAMPLES, Needs, compile_for, largest_batch
from ti_flax.config.concepts import Config, Many
from ti_flax.models.base_model import BaseModel
from ti_flax.runtime import chips, sharding

_log = logging.getLogger(__name__)

_GIB = chips.GIB


def lines(asked: Config | Many, given: int | None, topology: str) -> Iterator[str]:
    """Compiles a run's programs for a topology; a line as soon as it is known.

    `given` is the key `slots`. With it, or of many concepts, the step is that of so
    many; of one it is told how many would fit.

    Raises:
        UserError: what to mend, in one line.
    """
    config = slots.config_of(asked)
    mesh = topologies.make_mesh(topology, config.fsdp)
    model = programs.open_shapes(config, mesh)
    dtype = jnp.dtype(model.family.denoiser.module.dtype)
    yield (
        f"{topology}: {mesh.size} x {mesh.devices.flat[0].device_kind}, "
        f"{chips.chip(mesh).hbm_bytes / _GIB:.0f} GiB each; UNet in {dtype.name}, "
        f"attention {config.attention}"
    )
    began, batch = time.perf_counter(), config.train_batch_size
    count = slots.slots_of(asked, given, model, mesh)
    sharding.warn_of_padding(batch, mesh, count or 1)

    @functools.cache
    def needs_at(examples: int, count: int) -> Needs | None:
        _log.info("compiling the train step, %d x %d examples", count, examples)
        wanted = config.model_copy(update={"train_batch_size": examples})
        lowered = programs.lower_train_steps(wanted, model, mesh, slots=count)
        return compile_for(lowered)

    a_device = sharding.padded_batch(batch * (count or 1), mesh) // mesh.size
    if count is None:
        # What a step computes, filled up to the devices, as the largest batch is.
        needs = needs_at(a_device * mesh.size, 1)
    else:
        yield f"  slots    {slots.told(count, batch, mesh)}"
        needs = needs_at(batch, count)
    yield from _of_train(config, model, mesh, needs, count or 1)
    for name, lowered in (
        ("encode", programs.lower_encode(config, model, mesh)),
        ("preview", programs.lower_preview(config, model, mesh)),
    ):
        other = compile_for(lowered)
        fits = "does not fit" if other is None else f"fits: {other.peak / _GIB:.2f} GiB"
        yield f"  {name:8} {fits}"
    if count is None or needs is None:
        yield from _most(needs_at, batch, a_device, mesh)
    yield f"  compiled in {time.perf_counter() - began:.0f} s"


def _of_train(
    config: Config, model: BaseModel, mesh: Mesh, needs: Needs | None, count: int
) -> Iterator[str]:
    """Whether the step of so many concepts fits, and what it takes."""
    yield from _of_buckets(config, model, mesh, count)
    batch, chip = config.train_batch_size, chips.chip(mesh)
    if needs is None:
        yield f"  train    does not fit with train_batch_size {batch}"
        return
    _log.info("compiling it without its backward pass")
    forward = compile_for(programs.lower_forward(config, model, mesh, count))
    a_device = sharding.padded_batch(batch * count, mesh) // mesh.size
    yield "  train    fits: " + _memory(needs, forward, a_device, chip)
    yield "           " + _roofline(config, model, mesh, needs, count)


def _of_buckets(
    config: Config, model: BaseModel, mesh: Mesh, count: int
) -> Iterator[str]:
    """What the step of each bucket takes alone: the whole program has them all."""
    shapes = buckets.run_shapes(config, model).buckets
    if len(shapes) == 1:
        return
    for shape in shapes:
        began = time.perf_counter()
        lowered = programs.lower_train_steps(config, model, mesh, shape, count)
        needs = compile_for(lowered)
        seconds = time.perf_counter() - began
        pixels = (side * model.family.downscale for side in (shape.width, shape.height))
        size = "{}x{}".format(*pixels)
        fits = "does not fit" if needs is None else f"{needs.peak / _GIB:.2f} GiB"
        yield f"  bucket   {size}: {fits}, compiled in {seconds:.0f} s"


def _most(
    needs_at: Callable[[int, int], Needs | None], batch: int, first: int, mesh: Mesh
) -> Iterator[str]:
    """What is said of the largest batch and of the most slots that fit.

    Args:
        needs_at: compiles for (train_batch_size, slots).
        batch: train_batch_size.
        first: examples a device to begin with.
        mesh: the devices.
    """
    largest = largest_batch(
        lambda examples: needs_at(examples * mesh.size, 1),
        first,
        int(chips.chip(mesh).hbm_bytes),
        MOST_EXAMPLES,
    )
    if largest == 0:
        yield (
            "  largest  not even one example a device fits; set gradient_checkpointing "
            "true or a smaller resolution"
        )
        return
    more = "no larger was tried"
    if largest < MOST_EXAMPLES:
        more = f"{(largest + 1) * mesh.size} does not compile"
    size = largest * mesh.size
    yield f"  largest  train_batch_size {size}, {largest} a device; {more}"
    if size < batch:
        yield (
            "           set that or less and raise gradient_accumulation_steps, or "
            "gradient_checkpointing true"
        )
    yield from slots.lines_of_most(
        functools.partial(needs_at, batch), largest, batch, mesh
    )


def _memory(needs: Needs, forward: Needs, batch: int, chip: chips.Chip) -> str:
    # What the forward pass alone does not take is kept for the backward pass.
    activations = needs.temporaries - forward.temporaries
    return (
        f"{needs.peak / _GIB:.2f} of {chip.hbm_bytes / _GIB:.0f} GiB a device; weights "
        f"{needs.arguments / _GIB:.2f}, activations {activations / _GIB:.2f} "
        f"({activations / batch / _GIB:.2f} an example), other temporaries "
        f"{forward.temporaries / _GIB:.2f}"
    )


def _roofline(
    config: Config, model: BaseModel, mesh: Mesh, needs: Needs, count: int
) -> str:
    chip, recipe = chips.chip(mesh), programs.recipe_of(config, model, mesh, count)
    shapes = buckets.run_shapes(config, model)._replace(slots=count)
    work = flops.count_step(recipe, shapes) / mesh.size
    # The compiler counts a loop's body once: of several parts, the first and the body.
    parts = config.gradient_accumulation_steps
    traffic = needs.traffic * max(1.0, parts / 2)
    seconds = max(work / chip.peak_flops, traffic / chip.hbm_bandwidth)
    bound = "arithmetic" if seconds == work / chip.peak_flops else "memory"
    return (
        f"{work / 1e12:.2f} TFLOP and {traffic / _GIB:.1f} GiB moved a device: "
        f"at least {1e3 * seconds:.0f} ms a step ({bound}), "
        f"{seconds * config.max_train_steps:.0f} s for {config.max_train_steps} steps"
    )
