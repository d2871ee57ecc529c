"""Our train step at real shapes with random weights, ready to be timed."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.benchmarks.keys import StepKeys, WorkKeys
from ti_flax.config import run_config
from ti_flax.diffusion.process import Schedule
from ti_flax.models import attention, base_model, known
from ti_flax.quickstart import settings
from ti_flax.runtime import process, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.step import abstract, train_step
from ti_flax.training import run

KEYS = StepKeys

_OVERHEAD_CALLS = 20
_PEAK_SIDE = {"cpu": 2048}  # of the matrices whose product is timed
_PEAK_SIDE_ELSEWHERE = 8192


def open_model(keys: WorkKeys, plan: attention.Plan) -> base_model.BaseModel:
    """The networks that `keys.model` names, without weights."""
    dtype = base_model.unet_dtype(keys.dtype, plan.device.platform)
    if keys.model == "quickstart":
        return base_model.open_model(str(settings.MODEL), dtype=dtype, plan=plan)
    return abstract.make_model(known.SHAPES[keys.model], dtype, plan)


def latent_side(keys: WorkKeys, model: base_model.BaseModel) -> int:
    """Width and height of the latents of pictures at the keys' resolution."""
    if keys.resolution is None:
        return model.sample_size
    return keys.resolution // model.vae.config.downscale


def make_recipe(
    keys: StepKeys, model: base_model.BaseModel, mesh: jax.sharding.Mesh
) -> tuple[train_step.Recipe, int]:
    """The step as training makes it, and the side of its latents."""
    side = latent_side(keys, model)
    config = run_config.Config(
        pretrained_model_name_or_path=keys.model,
        train_data_dir="pictures",
        placeholder_token="<word>",
        resolution=side * model.vae.config.downscale,
        train_batch_size=keys.train_batch_size,
        gradient_checkpointing=keys.gradient_checkpointing,
    )
    sharding.warn_of_padding(keys.train_batch_size * keys.concepts, mesh)
    schedule = Schedule.from_json(model.scheduler)
    recipe = run.make_recipe(config, model, schedule, mesh)
    return recipe, side


def prepare(keys: StepKeys) -> tuple[dict[str, Any], Callable[[], float]]:
    """Facts of the program, and a function that takes a turn: seconds a step."""
    mesh = sharding.make_mesh()
    model = open_model(keys, attention.make_plan(keys.attention, mesh))
    recipe, side = make_recipe(keys, model, mesh)
    everywhere = sharding.replicated(mesh)
    state, bank = jax.device_put(
        abstract.make_run(recipe, side, keys.concepts), everywhere
    )
    frozen = abstract.random_weights(abstract.frozen_shapes(recipe))
    jax.block_until_ready(frozen)
    began = time.perf_counter()
    one = np.int32(1)
    program = (
        train_step.jit_train_steps(recipe).lower(state, frozen, bank, one).compile()
    )
    compiled = time.perf_counter() - began
    process.give_back_freed()

    def run(num_steps: int) -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = program(state, frozen, bank, np.int32(num_steps))
        loss = np.asarray(metrics.loss[: num_steps or 1])
        seconds = time.perf_counter() - began
        if not np.isfinite(loss).all():
            raise UserError(f"the loss is {loss.ravel()[0]}: random weights blew up")
        return seconds

    run(1)
    facts = {
        "first_step_seconds": process.process_age(),
        "library": f"ti_flax, jax {jax.__version__}",
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "dtype": jnp.dtype(model.unet.dtype).name,
        "attention": _attention_of(recipe, keys, side),
        "recomputes": recipe.unet.remat,
        "examples": keys.train_batch_size * keys.concepts,
        "resolution": side * model.vae.config.downscale,
        "flops": abstract.count_step(recipe, side, keys.concepts),
        "peak_flops": mesh.size * peak_flops(model.unet.dtype),
        "compile_seconds": compiled,
        # A dispatch of no steps: all that is left is the way there and back.
        "overhead_seconds": min(run(0) for _ in range(_OVERHEAD_CALLS)),
    }

    def take_turn() -> float:
        run(keys.steps)
        return run(keys.steps) / keys.steps

    return facts, take_turn


def peak_memory() -> int | None:
    """Most bytes in use on a device so far; none where it does not say."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in statistics if each]
    return max(peaks, default=None)


def _attention_of(recipe: train_step.Recipe, keys: StepKeys, side: int) -> str:
    """What computes self-attention at the UNet's first level."""
    config, examples = recipe.unet.config, keys.train_batch_size * keys.concepts
    heads = config.heads[0]
    q = jax.ShapeDtypeStruct(
        (examples, side**2, heads, config.block_out_channels[0] // heads),
        recipe.unet.dtype,
    )
    return attention.choose(q, q, recipe.unet.plan)


def peak_flops(dtype: Any) -> float:
    """FLOP/s of a large matrix product, the best of a few, on one device."""
    side = _PEAK_SIDE.get(jax.default_backend(), _PEAK_SIDE_ELSEWHERE)
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    best = math.inf
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
