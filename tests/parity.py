"""What tests of parity with PyTorch share: tolerances, errors, a step by recordings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank, Batch
from ti_flax.step.optimizer import adamw
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import State, init_state

FORWARD_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
# Adam divides by the gradient's own size, which amplifies a float32 error wherever a
# gradient is near zero: 2e-5 of the way gone is measured, 10 times that allowed. The
# decay of the rows by AdamW's usual 1e-2 is 6e-4, and must fail.
TRAJECTORY_TOLERANCE = 2e-4

Arrays = dict[str, np.ndarray]


def errors(ours: Any, theirs: np.ndarray) -> tuple[float, float]:
    """Relative errors: by norm, and of the largest element."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    assert np.any(theirs), "a reference of zeros compares nothing"
    difference = ours - theirs
    return (
        float(np.linalg.norm(difference) / np.linalg.norm(theirs)),
        float(np.abs(difference).max() / np.abs(theirs).max()),
    )


def assert_close(ours: Any, theirs: np.ndarray, tolerance: float) -> None:
    # Written so that a NaN fails.
    assert all(error <= tolerance for error in errors(ours, theirs)), (
        f"relative errors by norm and by largest element {errors(ours, theirs)}, "
        f"tolerance {tolerance}"
    )


@functools.cache
def compile_step(folder: str) -> tuple[train_step.StepRecipe, Callable[..., Any]]:
    """The recipe of the recorded trainings, and its step from given examples:
    (state, params, batch) to (state, loss, gradients by text encoder).
    """
    recipe = train_step.StepRecipe(
        family=base_model.open_model(folder).family,
        optimizer=adamw(0.9, 0.999, 1e-8, 0.0, None),
        train_batch_size=2,
        gradient_accumulation_steps=1,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )

    @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
    def take_step(state: State, params: dict[str, Params], batch: Batch):
        loss, grads = train_step.gradients(state.rows, params, batch, recipe)
        vectors = {name: each.shape[1] for name, each in state.rows.items()}
        state, _ = train_step.apply_gradients(
            state, loss, grads, unused_bank(vectors), recipe
        )
        return state, loss[0], {name: each[0] for name, each in grads.items()}

    return recipe, take_step


def stepper(
    model: base_model.BaseModel,
    params: dict[str, Params],
    read_batch: Callable[[int], Batch],
) -> tuple[Callable[[Mapping[str, np.ndarray]], State], Callable[..., Any]]:
    """`begin(rows)` to the state before the first step, and `take_step` from it.

    `read_batch` gives the recorded examples of a step.
    """
    recipe, take_step = compile_step(str(model.source.path))

    def begin(rows: Mapping[str, np.ndarray]) -> State:
        own = {name: jnp.asarray(each)[None] for name, each in rows.items()}
        # As a step returns it: another placement would compile a second executable.
        state = init_state(own, recipe.optimizer)
        return jax.device_put(state, sharding.replicated(recipe.mesh))

    def take(state: State, index: int) -> tuple[State, Array, dict[str, Array]]:
        return take_step(state, params, read_batch(index))

    return begin, take


def batch_of(recorded: Arrays, index: int, ids: Arrays, sizes: np.ndarray) -> Batch:
    """The recorded examples of one step, for one slot; ids and sizes are that step's.

    Arrays are NCHW in the recording.
    """
    latents = recorded["latents"][index]
    if "canvas" in recorded:
        # An inpainting model's also have those of a grey picture.
        grey = recorded["canvas"][:, 1:]
        grey = np.broadcast_to(grey, (len(latents), *grey.shape[1:]))
        latents = np.concatenate([latents, grey], axis=1)
    return Batch(
        latents=np.moveaxis(latents, 1, -1)[None],
        noise=np.moveaxis(recorded["noise"][index], 1, -1)[None],
        times=recorded["timesteps"][index][None].astype(np.int32),
        ids={name: each[None].astype(np.int32) for name, each in ids.items()},
        sizes=sizes[None].astype(np.int32),
    )


def unused_bank(vectors: Mapping[str, int]) -> Bank:
    """One slot from which nothing is drawn: examples come from the recording."""
    slot = Slot(
        seed_key=jax.random.key(0),
        buckets=[Encoded(jnp.zeros((1, 1, 1, 1, 8)), np.zeros((1, 1, 6), np.int32))],
        prompts={name: np.zeros((1, 1), np.int32) for name in vectors},
        rows={
            name: np.zeros((count, 1), np.float32) for name, count in vectors.items()
        },
        max_train_steps=1000,
        learning_rates=np.float32([5e-3]),  # LEARNING_RATE of the recorders
        norms=dict.fromkeys(vectors, 1.0),
    )
    return stack([slot])[1]
