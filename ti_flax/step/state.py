"""What training changes: the rows, their optimizer state, the counters."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Rows = dict[str, Float[Array, "S K D"]]


class State(NamedTuple):
    """All that training changes: a few kilobytes.

    `skipped` counts those of the steps that were not finite and changed nothing else.
    """

    step: Int[Array, "S"]
    skipped: Int[Array, "S"]
    rows: Rows
    opt_state: optax.OptState


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


def init_state(rows: Rows, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step; `rows` are the initial rows [S, K, D]."""
    slots = next(iter(rows.values())).shape[0]
    zeros = jnp.zeros(slots, jnp.int32)
    # Two arrays: a buffer is given up only once.
    return State(zeros, zeros.copy(), rows, jax.vmap(optimizer.init)(rows))


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
