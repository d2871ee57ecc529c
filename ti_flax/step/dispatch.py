"""Many train steps in one dispatch, compiled once for every length."""

import functools
from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ti_flax.models.torch_params import Params
from ti_flax.runtime import chips, compilation, compile_time, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.step import stopping, train_step
from ti_flax.step.bank import Bank
from ti_flax.step.state import Metrics, State

# The most steps of one dispatch. Metrics of every step come back in buffers this long.
MAX_STEPS_A_DISPATCH = 128


def train_steps(
    state: State,
    frozen: dict[str, Params],
    bank: Bank,
    num_steps: Int[Array, ""],
    recipe: train_step.StepRecipe,
) -> tuple[State, Metrics]:
    """`num_steps` train steps, and the metrics of each in buffers of fixed length.

    The trip count is traced: one executable serves every length, so that no number
    depends on how steps are grouped into dispatches.
    """
    # Inlined: as the function itself, but traced once for the shapes and for the loop.
    one_step = jax.jit(
        functools.partial(stopping.train_step_and_look, recipe=recipe), inline=True
    )
    shapes = jax.eval_shape(one_step, state, frozen, bank)[1]
    buffers = jax.tree.map(
        lambda leaf: jnp.zeros((MAX_STEPS_A_DISPATCH, *leaf.shape), leaf.dtype), shapes
    )

    def body(i: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, buffers = carry
        state, metrics = one_step(state, frozen, bank)
        return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, buffers))


def jit_train_steps(recipe: train_step.StepRecipe) -> jax.stages.Wrapped:
    """The jitted `train_steps`; the state passed in is given up (donated)."""
    return jax.jit(
        functools.partial(train_steps, recipe=recipe),
        donate_argnums=0,
        out_shardings=sharding.replicated(recipe.mesh),
    )


_NAME = "train step"
TOO_LARGE = (
    "train_batch_size: expected a step that fits into a device's memory, found one "
    "that does not; set gradient_checkpointing true, a larger "
    "gradient_accumulation_steps, a smaller train_batch_size, or of several concepts "
    "fewer slots: python -m ti_flax.train_compile says what fits"
)


class TrainSteps:
    """`jit_train_steps`, called with a checked number of steps.

    A call raises `UserError` where a device's memory is too small.
    """

    def __init__(
        self,
        steps: Callable[..., tuple[State, Metrics]],
        compiling: futures.Future | None,
        device: jax.Device,
    ) -> None:
        self._steps, self._compiling, self._device = steps, compiling, device

    def __call__(
        self, state: State, frozen: dict[str, Params], bank: Bank, num_steps: int
    ) -> tuple[State, Metrics]:
        if not 0 < num_steps <= MAX_STEPS_A_DISPATCH:
            raise ValueError(f"num_steps {num_steps} not in 1..{MAX_STEPS_A_DISPATCH}")
        try:
            return self._steps(state, frozen, bank, np.int32(num_steps))
        except jax.errors.JaxRuntimeError as error:
            if not compilation.says_too_large(error):
                raise
            raise UserError(TOO_LARGE) from error

    def fits(self) -> bool:
        """Whether a device's memory is enough, once what was begun is compiled."""
        if self._compiling is None:
            raise ValueError("shapes were not given")
        try:
            compiled = self._compiling.result()
        except jax.errors.JaxRuntimeError as error:
            if not compilation.says_too_large(error):
                raise
            return False
        return compilation.peak_bytes(compiled) <= chips.device_memory(self._device)


def compile_train_steps(
    recipe: train_step.StepRecipe,
    shapes: tuple[State, dict[str, Params], Bank] | None = None,
) -> TrainSteps:
    """The compiled `train_steps`.

    Given the arguments' shapes, dtypes and shardings, it is compiled from now on, in a
    thread of its own, so that weights can be read meanwhile.
    """
    jitted, compiling = jit_train_steps(recipe), None
    if shapes is not None:
        everywhere = sharding.replicated(recipe.mesh)
        count = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
        pool = futures.ThreadPoolExecutor(1)
        compiling = pool.submit(_compile, jitted, (*shapes, count))
        pool.shutdown(wait=False)
    steps = compilation.compiled_together(jitted, compiling, _NAME)
    return TrainSteps(steps, compiling, recipe.mesh.devices.flat[0])


def _compile(jitted: jax.stages.Wrapped, arguments: tuple) -> jax.stages.Compiled:
    with compile_time.noted(_NAME):
        return jitted.lower(*arguments).compile()
