"""What `python -m ti_flax.train_compile` says of one topology."""

import functools
import logging
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ti_flax.aot import buckets, flops, topologies
from ti_flax.aot.needs import Needs, compile_for, largest_batch
from ti_flax.config import run_config
from ti_flax.diffusion import scheduler_config
from ti_flax.generation import previews, sampling
from ti_flax.models import attention, base_model
from ti_flax.models.family import Conditioning, Family
from ti_flax.models.opening import Choices
from ti_flax.models.torch_params import Params, param_shapes
from ti_flax.runtime import chips, sharding
from ti_flax.step import dispatch, train_step
from ti_flax.step.abstract import BucketShape, abstract, abstract_arguments
from ti_flax.step.bank import Bank, draw_batch
from ti_flax.step.state import State
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import ENCODE_BATCH_SIZE, jit_encode

_log = logging.getLogger(__name__)

# Larger batches than this on one device are not looked for.
_MOST_EXAMPLES = 512
_GIB = chips.GIB


def lines(config: run_config.Config, topology: str) -> Iterator[str]:
    """Compiles a run's programs for a topology; a line as soon as it is known.

    Raises:
        UserError: what to mend, in one line.
    """
    mesh = topologies.make_mesh(topology, config.fsdp)
    chip = chips.chip(mesh)
    model = open_shapes(config, mesh)
    dtype = jnp.dtype(model.family.denoiser.module.dtype)
    yield (
        f"{topology}: {mesh.size} x {mesh.devices.flat[0].device_kind}, "
        f"{chip.hbm_bytes / _GIB:.0f} GiB each; UNet in {dtype.name}, attention "
        f"{config.attention}"
    )
    sharding.warn_of_padding(config.train_batch_size, mesh)
    # What a step computes, filled up to the devices, is what is compiled and counted.
    given = config.train_batch_size
    config = config.model_copy(
        update={"train_batch_size": sharding.padded_batch(given, mesh)}
    )
    a_device = config.train_batch_size // mesh.size
    began = time.perf_counter()

    @functools.cache
    def needs_at(batch: int) -> Needs | None:
        _log.info("compiling the train step, %d examples a device", batch)
        wanted = config.model_copy(update={"train_batch_size": batch * mesh.size})
        return compile_for(lower_train_steps(wanted, model, mesh))

    needs = needs_at(a_device)
    yield from _of_buckets(config, model, mesh)
    if needs is None:
        yield f"  train    does not fit with train_batch_size {given}"
    else:
        _log.info("compiling it without its backward pass")
        forward = compile_for(lower_forward(config, model, mesh))
        yield "  train    fits: " + _memory(needs, forward, a_device, chip)
        yield "           " + _roofline(config, model, mesh, needs, chip)
    for name, lowered in (
        ("encode", lower_encode(config, model, mesh)),
        ("preview", lower_preview(config, model, mesh)),
    ):
        other = compile_for(lowered)
        fits = "does not fit" if other is None else f"fits: {other.peak / _GIB:.2f} GiB"
        yield f"  {name:8} {fits}"
    largest = largest_batch(needs_at, a_device, int(chip.hbm_bytes), _MOST_EXAMPLES)
    yield from _largest(largest, mesh)
    if needs is None and largest:
        yield (
            "           set that or less and raise gradient_accumulation_steps, or "
            "gradient_checkpointing true"
        )
    yield f"  compiled in {time.perf_counter() - began:.0f} s"


def _of_buckets(
    config: run_config.Config, model: base_model.BaseModel, mesh: Mesh
) -> Iterator[str]:
    """What the step of each bucket takes alone: the whole program has them all."""
    shapes = buckets.run_shapes(config, model).buckets
    if len(shapes) == 1:
        return
    for shape in shapes:
        began = time.perf_counter()
        needs = compile_for(lower_train_steps(config, model, mesh, shape))
        seconds = time.perf_counter() - began
        pixels = (side * model.family.downscale for side in (shape.width, shape.height))
        size = "{}x{}".format(*pixels)
        fits = "does not fit" if needs is None else f"{needs.peak / _GIB:.2f} GiB"
        yield f"  bucket   {size}: {fits}, compiled in {seconds:.0f} s"


def _largest(examples: int, mesh: Mesh) -> Iterator[str]:
    """What is said of the largest batch that fits, so many examples a device."""
    if examples == 0:
        yield (
            "  largest  not even one example a device fits; set gradient_checkpointing "
            "true or a smaller resolution"
        )
        return
    more = (
        f"{(examples + 1) * mesh.size} does not compile"
        if examples < _MOST_EXAMPLES
        else "no larger was tried"
    )
    yield (
        f"  largest  train_batch_size {examples * mesh.size}, {examples} a device; "
        f"{more}"
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
    config: run_config.Config,
    model: base_model.BaseModel,
    mesh: Mesh,
    needs: Needs,
    chip: chips.Chip,
) -> str:
    recipe = recipe_of(config, model, mesh)
    work = flops.count_step(recipe, buckets.run_shapes(config, model)) / mesh.size
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


def open_shapes(config: run_config.Config, mesh: Mesh) -> base_model.BaseModel:
    """The networks of a run on these devices, without their weights."""
    platform = mesh.devices.flat[0].platform
    model = base_model.open_model(
        config.pretrained_model_name_or_path,
        config.revision,
        config.variant,
        base_model.denoiser_dtype(config.mixed_precision, platform),
        attention.make_plan(config.attention, mesh),
        download_weights=False,
        choices=Choices.of(config),
    )
    return model


def recipe_of(
    config: run_config.Config, model: base_model.BaseModel, mesh: Mesh
) -> train_step.StepRecipe:
    """The recipe of the run that the configuration describes.

    Raises `UserError` where the resolution does not suit the model.
    """
    latents = buckets.run_shapes(config, model).largest.latents
    return make_recipe(config, model.family, latents, mesh)


def lower_train_steps(
    config: run_config.Config,
    model: base_model.BaseModel,
    mesh: Mesh,
    only: BucketShape | None = None,
) -> jax.stages.Lowered:
    """The program of every dispatch of training, on all buckets or `only` one."""
    recipe = recipe_of(config, model, mesh)
    one = abstract(jnp.int32(1), sharding.replicated(mesh))
    return dispatch.jit_train_steps(recipe).lower(
        *_abstract_run(config, model, recipe, only), one
    )


def lower_forward(
    config: run_config.Config, model: base_model.BaseModel, mesh: Mesh
) -> jax.stages.Lowered:
    """The part of a step that draws a batch and finds its loss, without gradients."""
    recipe = recipe_of(config, model, mesh)

    def forward(
        state: State,
        frozen: dict[str, Params],
        bank: Bank,
    ):
        examples = jnp.arange(recipe.train_batch_size)
        batch = draw_batch(bank, state.step, examples, recipe.family)
        return train_step.losses(state.rows, frozen, batch, recipe)

    largest = buckets.run_shapes(config, model).largest
    return jax.jit(forward).lower(*_abstract_run(config, model, recipe, largest))


def _abstract_run(
    config: run_config.Config,
    model: base_model.BaseModel,
    recipe: train_step.StepRecipe,
    only: BucketShape | None = None,
) -> tuple[State, dict[str, Params], Bank]:
    """Shapes and places of state, frozen weights and bank: of all buckets or one."""
    run = buckets.run_shapes(config, model)
    if only is not None:
        run = run._replace(buckets=(only,))
    return abstract_arguments(recipe, run)


def lower_encode(
    config: run_config.Config, model: base_model.BaseModel, mesh: Mesh
) -> jax.stages.Lowered:
    """The program that turns pictures into moments, on one device."""
    alone = sharding.replicated(sharding.make_mesh([mesh.devices.flat[0]]))
    side, part = config.resolution, model.family.autoencoder
    pixels = jax.ShapeDtypeStruct((ENCODE_BATCH_SIZE, side, side, 3), jnp.float32)
    params = param_shapes(part.module)
    return jit_encode(model.family).lower(*abstract((params, pixels), alone))


def lower_preview(
    config: run_config.Config, model: base_model.BaseModel, mesh: Mesh
) -> jax.stages.Lowered:
    """The program that makes the latents of one picture a device."""
    family = model.family
    scheduler = scheduler_config.find_name(model.scheduler)
    sampler = scheduler_config.make_sampler(model.scheduler, scheduler, previews.STEPS)
    side = family.latent_side(config.resolution)
    everywhere, examples = sharding.replicated(mesh), sharding.over_examples(mesh)
    told = jax.eval_shape(functools.partial(_encode, family, mesh.size))
    noise = jax.ShapeDtypeStruct(
        (mesh.size, side, side, family.latent_channels), jnp.float32
    )
    negative = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), told
    )
    steps = sampler.steps.renewed(lambda count: jnp.zeros((count, *noise.shape)))
    return sampling.sample_latents.lower(
        abstract(param_shapes(family.denoiser.module), everywhere),
        abstract(jax.tree.map(jnp.asarray, steps), everywhere),
        abstract(told, examples),
        abstract(negative, everywhere),
        abstract(noise, examples),
        previews.GUIDANCE_SCALE,
        abstract(_canvas(family, config.resolution), everywhere),
        stepper=sampler.stepper,
        denoiser=family.denoiser.module,
        mesh=mesh,
    )


def _canvas(family: Family, side: int) -> jax.ShapeDtypeStruct | None:
    """The shape of what the denoiser sees beside a picture's latents."""
    if family.canvas is None:
        return None
    canvas = functools.partial(family.canvas, size=(side, side))
    return jax.eval_shape(canvas, param_shapes(family.autoencoder.module))


def _encode(family: Family, count: int) -> Conditioning:
    """What is told of so many prompts; to be traced for its shapes."""

    def zeros(tree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

    encoders = family.text_encoders
    return family.encode_text(
        {each.name: zeros(param_shapes(each.module)) for each in encoders},
        {each.name: jnp.zeros((count, each.length), jnp.int32) for each in encoders},
        {each.name: jnp.zeros((count, 0, each.width)) for each in encoders},
        jnp.zeros((count, 6), jnp.int32),
    )
