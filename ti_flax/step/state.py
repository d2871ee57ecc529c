"""What training changes: the rows, their optimizer state, the counters."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Rows = dict[str, Float[Array, "S K D"]]


class Rule(NamedTuple):
    """When each slot has learned, by its fixed losses: see `stopping.note`.

    Where a rule is off, `dvar_eps` is 0, and `patience` longer than any run.
    """

    dvar_eps: Float[Array, "S"]
    # In steps.
    patience: Int[Array, "S"]
    min_delta: Float[Array, "S"]

    @classmethod
    def of_slot(
        cls, dvar_eps: float = 0.0, patience: int | None = None, min_delta: float = 0.0
    ) -> "Rule":
        """Without the axis S; by default it never stops."""
        never = jnp.iinfo(jnp.int32).max
        steps = jnp.int32(never if patience is None else patience)
        return cls(jnp.float32(dvar_eps), steps, jnp.float32(min_delta))


class Progress(NamedTuple):
    """The fixed losses of each slot so far, and its rows at the least of them.

    `recent` is a ring: the loss of evaluation n, from 0, stands at n mod R. `mean` and
    `deviations`, the sum of squared deviations from it, are of all (Welford 1962).
    """

    # The slot has learned, and takes no step more.
    stopped: Bool[Array, "S"]
    evaluations: Int[Array, "S"]
    recent: Float[Array, "S R"]
    mean: Float[Array, "S"]
    deviations: Float[Array, "S"]
    best_loss: Float[Array, "S"]
    best_step: Int[Array, "S"]
    best_rows: Rows
    # The last loss that was much lower than the one before it that was.
    lowered_to: Float[Array, "S"]
    lowered_step: Int[Array, "S"]


class State(NamedTuple):
    """All that training changes: a few kilobytes.

    `skipped` counts those of the steps that were not finite and changed nothing else.
    `progress` is None where nothing looks at the fixed loss.
    """

    step: Int[Array, "S"]
    skipped: Int[Array, "S"]
    rows: Rows
    opt_state: optax.OptState
    progress: Progress | None = None


class Metrics(NamedTuple):
    """Of one step, or with a leading axis of steps."""

    loss: Float[Array, "*steps S"]
    grad_norm: Float[Array, "*steps S"]
    learning_rate: Float[Array, "*steps S"]
    # Of every row of the first text encoder, then of the next.
    row_norm: Float[Array, "*steps S EK"]
    row_step: Float[Array, "*steps S EK"]
    # Loss, gradient or update was not finite: the slot's rows are as before.
    skipped: Bool[Array, "*steps S"]
    # The slot has steps left after this one.
    running: Bool[Array, "*steps S"]
    # After the step; NaN where it was not evaluated.
    fixed_loss: Float[Array, "*steps S"]


def init_state(
    rows: Rows, optimizer: optax.GradientTransformation, window: int | None = None
) -> State:
    """The state before the first step.

    Args:
        rows: the initial rows [S, K, D].
        optimizer: of one slot.
        window: how many of the last fixed losses are kept; None: none is looked at.
    """
    slots = next(iter(rows.values())).shape[0]

    # An array for each: a buffer is given up only once.
    def count() -> Int[Array, "S"]:
        return jnp.zeros(slots, jnp.int32)

    state = State(count(), count(), rows, jax.vmap(optimizer.init)(rows))
    if window is None:
        return state
    return state._replace(
        progress=Progress(
            stopped=jnp.zeros(slots, bool),
            evaluations=count(),
            recent=jnp.zeros((slots, window)),
            mean=jnp.zeros(slots),
            deviations=jnp.zeros(slots),
            best_loss=jnp.full(slots, jnp.inf, jnp.float32),
            best_step=count(),
            best_rows=jax.tree.map(jnp.copy, rows),
            lowered_to=jnp.full(slots, jnp.inf, jnp.float32),
            lowered_step=count(),
        )
    )


def lengths(rows: Rows) -> Float[Array, "S EK"]:
    """L2 norms of the rows, those of one text encoder after those of another."""
    norms = [jnp.linalg.norm(each, axis=-1) for each in rows.values()]
    return jnp.concatenate(norms, axis=-1)


def all_finite(tree: Any) -> Bool[Array, "S"]:
    """Whether every number of a slot is finite; all leaves have the slots first."""
    return functools.reduce(
        jnp.logical_and,
        (
            jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ),
    )
