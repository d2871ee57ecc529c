"""Our train step at real shapes with random weights, ready to be timed."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.aot import flops
from ti_flax.benchmarks import random_run, work
from ti_flax.benchmarks.keys import StepKeys
from ti_flax.models import attention
from ti_flax.models.random_params import random_weights
from ti_flax.runtime import process, profile, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.step import dispatch, train_step
from ti_flax.step.abstract import RunShapes, frozen_shapes

KEYS = StepKeys

_OVERHEAD_CALLS = 20


def prepare(keys: StepKeys) -> tuple[dict[str, Any], Callable[[], float]]:
    """Facts of the program, and a function that takes a turn: seconds a step."""
    mesh = sharding.make_mesh()
    model = work.open_model(keys, attention.make_plan(keys.attention, mesh))
    recipe, side = work.recipe_of(keys, model, mesh)
    net, everywhere = recipe.family.denoiser.module, sharding.replicated(mesh)
    state, bank = jax.device_put(
        random_run.make_run(recipe, side, keys.concepts), everywhere
    )
    frozen = random_weights(frozen_shapes(recipe))
    jax.block_until_ready(frozen)
    began = time.perf_counter()
    one = np.int32(1)
    program = dispatch.jit_train_steps(recipe).lower(state, frozen, bank, one).compile()
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
        "first_step_seconds": profile.process_age(),
        "library": f"ti_flax, jax {jax.__version__}",
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "dtype": jnp.dtype(net.dtype).name,
        "attention": _attention_of(recipe, keys, side),
        "recomputes": net.remat,
        "examples": keys.train_batch_size * keys.concepts,
        "resolution": side * model.family.downscale,
        "flops": flops.count_step(recipe, RunShapes.square(side, slots=keys.concepts)),
        "peak_flops": mesh.size * work.peak_flops(net.dtype),
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


def _attention_of(recipe: train_step.StepRecipe, keys: StepKeys, side: int) -> str:
    """What computes self-attention at the UNet's first level."""
    net = recipe.family.denoiser.module
    config, examples = net.config, keys.train_batch_size * keys.concepts
    heads = config.heads[0]
    q = jax.ShapeDtypeStruct(
        (examples, side**2, heads, config.block_out_channels[0] // heads),
        net.dtype,
    )
    return attention.choose(q, q, net.plan)
