"""The programs of a run, traced for devices that nobody holds; weights are not read."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ti_flax.aot import buckets
from ti_flax.config import run_config
from ti_flax.diffusion import scheduler_config
from ti_flax.generation import previews, sampling
from ti_flax.models import base_model
from ti_flax.models.family import Conditioning, Family
from ti_flax.models.torch_params import Params, param_shapes
from ti_flax.runtime import sharding
from ti_flax.step import dispatch, train_step
from ti_flax.step.abstract import BucketShape, abstract, abstract_arguments
from ti_flax.step.bank import Bank, draw_batch
from ti_flax.step.state import State
from ti_flax.training.networks import open_networks
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import ENCODE_BATCH_SIZE, jit_encode


def open_shapes(config: run_config.Config, mesh: Mesh) -> base_model.BaseModel:
    """The networks of a run on these devices, without their weights."""
    return open_networks(config, mesh, download_weights=False)


def recipe_of(
    config: run_config.Config,
    model: base_model.BaseModel,
    mesh: Mesh,
    slots: int = 1,
) -> train_step.StepRecipe:
    """The recipe of the run that the configuration describes, of so many concepts.

    Raises `UserError` where the resolution does not suit the model.
    """
    latents = buckets.run_shapes(config, model).largest.latents
    return make_recipe(config, model.family, latents, mesh, slots)


def lower_train_steps(
    config: run_config.Config,
    model: base_model.BaseModel,
    mesh: Mesh,
    only: BucketShape | None = None,
    slots: int = 1,
) -> jax.stages.Lowered:
    """The program of every dispatch of training, on all buckets or `only` one."""
    recipe = recipe_of(config, model, mesh, slots)
    one = abstract(jnp.int32(1), sharding.replicated(mesh))
    return dispatch.jit_train_steps(recipe).lower(
        *_abstract_run(config, model, recipe, slots, only), one
    )


def lower_forward(
    config: run_config.Config,
    model: base_model.BaseModel,
    mesh: Mesh,
    slots: int = 1,
) -> jax.stages.Lowered:
    """The part of a step that draws a batch and finds its loss, without gradients."""
    recipe = recipe_of(config, model, mesh, slots)

    def forward(
        state: State,
        frozen: dict[str, Params],
        bank: Bank,
    ):
        examples = jnp.arange(recipe.train_batch_size)
        batch = draw_batch(bank, state.step, examples, recipe.family)
        return train_step.losses(state.rows, frozen, batch, recipe)

    largest = buckets.run_shapes(config, model).largest
    return jax.jit(forward).lower(*_abstract_run(config, model, recipe, slots, largest))


def _abstract_run(
    config: run_config.Config,
    model: base_model.BaseModel,
    recipe: train_step.StepRecipe,
    slots: int,
    only: BucketShape | None,
) -> tuple[State, dict[str, Params], Bank]:
    """Shapes and places of state, frozen weights and bank: of all buckets or one."""
    run = buckets.run_shapes(config, model)._replace(slots=slots)
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
