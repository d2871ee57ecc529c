"""What both sides of the step benchmark measure: model, shapes, recipe."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from ti_flax.benchmarks import random_run
from ti_flax.benchmarks.keys import StepKeys, WorkKeys
from ti_flax.config import run_config
from ti_flax.models import attention, base_model, known
from ti_flax.quickstart import settings
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.training.recipe import make_recipe

_PEAK_SIDE = {"cpu": 2048}  # of the matrices whose product is timed
_PEAK_SIDE_ELSEWHERE = 8192


def open_model(keys: WorkKeys, plan: attention.Plan) -> base_model.BaseModel:
    """The networks that `keys.model` names, without weights."""
    dtype = base_model.denoiser_dtype(keys.dtype, plan.device.platform)
    if keys.model == "quickstart":
        return base_model.open_model(str(settings.MODEL), dtype=dtype, plan=plan)
    return random_run.make_model(known.SHAPES[keys.model], dtype, plan)


def latent_side(keys: WorkKeys, model: base_model.BaseModel) -> int:
    """Width and height of the latents of pictures at the keys' resolution."""
    if keys.resolution is None:
        return max(model.family.sample_size)
    return model.family.latent_side(keys.resolution)


def recipe_of(
    keys: StepKeys, model: base_model.BaseModel, mesh: jax.sharding.Mesh
) -> tuple[train_step.StepRecipe, int]:
    """The step as training makes it, and the side of its latents."""
    side = latent_side(keys, model)
    settings = run_config.TrainingKeys(
        train_batch_size=keys.train_batch_size,
        gradient_checkpointing=keys.gradient_checkpointing,
    )
    sharding.warn_of_padding(keys.train_batch_size * keys.concepts, mesh)
    return make_recipe(settings, model.family, side**2, mesh), side


def peak_flops(dtype: Any) -> float:
    """FLOP/s of a large matrix product, the best of a few, on one device."""
    side = _PEAK_SIDE.get(jax.default_backend(), _PEAK_SIDE_ELSEWHERE)
    # Not of ones: GPUs multiply those faster, since fewer bits change.
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    best = math.inf
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
