"""The train step: draw examples, differentiate to the learned rows, update them.

Concepts live on a leading slot axis S and share the frozen networks. Each slot has its
own seed, pictures, prompts, step counter and optimizer state, so that a concept learns
the same rows whether it is trained alone or beside others.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ti_flax.diffusion.objective import PLAIN, Objective
from ti_flax.models.family import Family
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import buckets
from ti_flax.step.bank import Bank, Batch, draw_batch
from ti_flax.step.optimizer import Hold
from ti_flax.step.state import Metrics, Rows, State, all_finite, lengths


class StepRecipe(NamedTuple):
    """What a step is made of; nothing here changes, nothing here is large."""

    family: Family
    optimizer: optax.GradientTransformationExtraArgs
    train_batch_size: int
    gradient_accumulation_steps: int
    mesh: jax.sharding.Mesh
    hold: Hold | None = None
    objective: Objective = PLAIN
    # Steps between evaluations of the fixed loss, and how many of the last are kept;
    # None: there are none.
    fixed_loss_steps: int = 1
    window: int | None = None


def losses(
    rows: Rows, frozen: Mapping[str, Params], batch: Batch, recipe: StepRecipe
) -> Float[Array, "S"]:
    """Each slot's mean loss over its own examples (Gal et al. 2023, eq. 2)."""
    return example_losses(rows, frozen, batch, recipe).mean(axis=1)


def example_losses(
    rows: Rows, frozen: Mapping[str, Params], batch: Batch, recipe: StepRecipe
) -> Float[Array, "S B"]:
    """The loss of each example of each slot."""
    family, (slots, examples) = recipe.family, batch.times.shape
    flat = jax.tree.map(lambda x: x.reshape(slots * examples, *x.shape[2:]), batch)
    own = jax.tree.map(lambda x: jnp.repeat(x, examples, axis=0), rows)
    flat, own = jax.tree.map(
        lambda array: sharding.pad_examples(array, recipe.mesh), (flat, own)
    )
    flat = jax.lax.with_sharding_constraint(flat, sharding.over_examples(recipe.mesh))
    told = family.encode_text(frozen, flat.ids, own, flat.sizes)
    noise = flat.noise if flat.input_noise is None else flat.input_noise
    prediction = family.denoiser.module.apply(
        {"params": frozen[family.denoiser.name]},
        family.process.add_noise(flat.latents, noise, flat.times),
        family.process.told(flat.times),
        *told,
    )
    target = family.process.target(flat.latents, flat.noise, flat.times)
    each = recipe.objective.losses(prediction, target, flat.times, flat.loss_weights)
    each = each * family.process.weight(flat.times)
    # What fills the batch up has no part in the mean, and so none in the gradient.
    return each[: slots * examples].reshape(slots, examples)


def gradients(
    rows: Rows, frozen: Mapping[str, Params], batch: Batch, recipe: StepRecipe
) -> tuple[Float[Array, "S"], Rows]:
    """Losses, and the gradient of each slot's loss to its own rows."""

    def total(rows: Rows) -> tuple[Array, Array]:
        # Slots share no rows, so the gradient of the sum is each slot's own.
        per_slot = losses(rows, frozen, batch, recipe)
        return per_slot.sum(), per_slot

    (_, per_slot), grads = jax.value_and_grad(total, has_aux=True)(rows)
    return per_slot, grads


def apply_gradients(
    state: State, loss: Float[Array, "S"], grads: Rows, bank: Bank, recipe: StepRecipe
) -> tuple[State, Metrics]:
    """One optimizer step of every slot that has steps left and was not stopped.

    A slot whose loss, gradient or new state is not finite keeps what it had, to the
    bit, but for the counters: the next step draws another batch.
    """
    running = state.step < bank.max_train_steps
    if state.progress is not None:
        running &= ~state.progress.stopped
    active = bank.row_mask & running[:, None]
    learning_rate = jax.vmap(_rate)(bank.learning_rates, state.step - state.skipped)
    updates, opt_state = jax.vmap(
        lambda g, s, r, active, rate: recipe.optimizer.update(
            g, s, r, active=active, learning_rate=rate
        )
    )(grads, state.opt_state, state.rows, active, learning_rate)
    rows = optax.apply_updates(state.rows, updates)
    if recipe.hold is not None:
        start = bank.initial, bank.norms
        rows = recipe.hold.of_slots(rows, *start, learning_rate, active)
    finite = all_finite((loss, grads, rows, opt_state))

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    rows, opt_state = jax.tree.map(
        keep, (rows, opt_state), (state.rows, state.opt_state)
    )
    step, skipped = state.step + running, running & ~finite
    metrics = Metrics(
        loss=loss,
        grad_norm=jax.vmap(optax.tree.norm)(grads),
        learning_rate=learning_rate,
        row_norm=lengths(rows),
        row_step=lengths(jax.tree.map(jnp.subtract, rows, state.rows)),
        skipped=skipped,
        running=running & (step < bank.max_train_steps),
        fixed_loss=jnp.full_like(loss, jnp.nan),
    )
    counts = {"step": step, "skipped": state.skipped + skipped}
    return state._replace(rows=rows, opt_state=opt_state, **counts), metrics


def _rate(rates: Float[Array, "T"], count: Int[Array, ""]) -> Float[Array, ""]:
    """That of a step; the last stays."""
    return rates[jnp.minimum(count, rates.shape[0] - 1)]


def train_step(
    state: State, frozen: Mapping[str, Params], bank: Bank, recipe: StepRecipe
) -> tuple[State, Metrics]:
    """Draws a batch of every slot, each of one bucket, and updates its rows."""
    drawn = functools.partial(_drawn_gradients, frozen=frozen, recipe=recipe)
    if len(bank.buckets) > 1:
        drawn = functools.partial(buckets.in_turns, drawn)
    loss, grads = drawn(state.rows, state.step, bank)
    return apply_gradients(state, loss, grads, bank, recipe)


def _drawn_gradients(
    rows: Rows,
    step: Int[Array, "S"],
    bank: Bank,
    frozen: Mapping[str, Params],
    recipe: StepRecipe,
) -> tuple[Float[Array, "S"], Rows]:
    """Of a batch drawn in `gradient_accumulation_steps` parts."""

    def part(index: Array) -> tuple[Array, Rows]:
        examples = index * recipe.train_batch_size + jnp.arange(recipe.train_batch_size)
        batch = draw_batch(bank, step, examples, recipe.family, recipe.objective)
        return gradients(rows, frozen, batch, recipe)

    parts = recipe.gradient_accumulation_steps
    if parts == 1:
        return part(jnp.int32(0))
    # One part at a time; only their sum is kept.
    first = part(jnp.int32(0))
    summed = jax.lax.fori_loop(
        1, parts, lambda i, sums: jax.tree.map(jnp.add, sums, part(i)), first
    )
    return jax.tree.map(lambda x: x / parts, summed)
