"""When a word has learned: the fixed loss between steps, and what it decides."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ti_flax.models.torch_params import Params
from ti_flax.step.bank import Bank
from ti_flax.step.fixed_loss import fixed_loss
from ti_flax.step.state import Metrics, Progress, Rows, Rule, State
from ti_flax.step.train_step import StepRecipe, train_step


def train_step_and_look(
    state: State, frozen: Mapping[str, Params], bank: Bank, recipe: StepRecipe
) -> tuple[State, Metrics]:
    """A train step, and the fixed loss after each `recipe.fixed_loss_steps` of them.

    Slots that are due are evaluated together; where none is, nothing is.
    """
    before = state.step
    state, metrics = train_step(state, frozen, bank, recipe)
    if state.progress is None:
        return state, metrics
    due = (state.step > before) & (state.step % recipe.fixed_loss_steps == 0)
    losses = jax.lax.cond(
        due.any(),
        lambda: fixed_loss(state.rows, frozen, bank, recipe).mean,
        lambda: metrics.fixed_loss,
    )
    losses = jnp.where(due, losses, jnp.nan)
    progress = note(state.progress, losses, state.step, state.rows, bank.rule)
    running = metrics.running & ~progress.stopped
    metrics = metrics._replace(fixed_loss=losses, running=running)
    return state._replace(progress=progress), metrics


def note(
    progress: Progress,
    losses: Float[Array, "S"],
    step: Int[Array, "S"],
    rows: Rows,
    rule: Rule,
) -> Progress:
    """The progress with the fixed losses after `step` steps; NaN: not evaluated.

    A slot stops where the variance of its last R losses is less than `dvar_eps` of that
    of all, R of them at least (DVAR, Voronov et al. 2023, algorithm 1); or where for
    `patience` steps none was lower than the share 1 - `min_delta` of the last that was.
    """

    def of_slot(
        seen: Progress, loss: Array, step: Array, rows: dict[str, Array], rule: Rule
    ) -> Progress:
        (window,) = seen.recent.shape
        count = seen.evaluations + 1
        recent = seen.recent.at[seen.evaluations % window].set(loss)
        moved = loss - seen.mean
        mean = seen.mean + moved / count
        deviations = seen.deviations + moved * (loss - mean)
        settled = recent.var() < rule.dvar_eps * (deviations / count)
        lower = loss < seen.lowered_to * (1 - rule.min_delta)
        lowered_step = jnp.where(lower, step, seen.lowered_step)
        waited = step - lowered_step >= rule.patience
        best = loss < seen.best_loss
        new = Progress(
            stopped=seen.stopped | ((count >= window) & settled) | waited,
            evaluations=count,
            recent=recent,
            mean=mean,
            deviations=deviations,
            best_loss=jnp.where(best, loss, seen.best_loss),
            best_step=jnp.where(best, step, seen.best_step),
            best_rows=_where(best, rows, seen.best_rows),
            lowered_to=jnp.where(lower, loss, seen.lowered_to),
            lowered_step=lowered_step,
        )
        return _where(jnp.isfinite(loss), new, seen)

    return jax.vmap(of_slot)(progress, losses, step, rows, rule)


def kept(
    state: State, keep: Literal["last", "best"]
) -> tuple[dict[str, Float[np.ndarray, "S K D"]], Int[np.ndarray, "S"]]:
    """Each slot's rows as they are to be kept, and after how many steps they were so.

    Before the first evaluation there is no best: the last are.
    """
    last = jax.tree.map(np.asarray, (state.rows, state.step))
    seen = state.progress
    if keep == "last" or seen is None:
        return last
    best = jax.tree.map(np.asarray, (seen.best_rows, seen.best_step))
    there = np.asarray(seen.evaluations) > 0
    return jax.tree.map(
        lambda new, old: np.where(there.reshape(-1, *[1] * (old.ndim - 1)), new, old),
        best,
        last,
    )


def _where(said: Bool[Array, ""], then: Any, otherwise: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(said, a, b), then, otherwise)
