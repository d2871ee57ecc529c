"""The train step: draw examples, differentiate to the learned rows, update them.

Concepts live on a leading slot axis S and share the frozen networks. Each slot has its
own seed, pictures, prompts, step counter and optimizer state, so that a concept learns
the same rows whether it is trained alone or beside others.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ti_flax.diffusion.process import Schedule, mse
from ti_flax.models import clip_text, unet
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step.bank import Bank, Batch, draw_batch
from ti_flax.step.optimizer import Hold
from ti_flax.step.state import Metrics, Rows, State


class Recipe(NamedTuple):
    """What a step is made of; nothing here changes, nothing here is large."""

    text_encoder: clip_text.ClipText
    unet: unet.UNet
    scaling_factor: float
    schedule: Schedule
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    train_batch_size: int
    gradient_accumulation_steps: int
    mesh: jax.sharding.Mesh
    hold: Hold | None = None


def losses(
    rows: Rows, frozen: dict[str, Params], batch: Batch, recipe: Recipe
) -> Float[Array, "S"]:
    """Each slot's mean loss over its own examples (Gal et al. 2023, eq. 2)."""
    slots, examples = batch.timesteps.shape

    def flatten(array: Array) -> Array:
        flat = array.reshape(slots * examples, *array.shape[2:])
        return jax.lax.with_sharding_constraint(
            sharding.pad_examples(flat, recipe.mesh),
            sharding.over_examples(recipe.mesh),
        )

    latents, noise, timesteps, ids = (flatten(array) for array in batch)
    own_rows = sharding.pad_examples(
        jnp.repeat(rows["text_encoder"], examples, axis=0), recipe.mesh
    )
    context = recipe.text_encoder.apply(
        {"params": frozen["text_encoder"]}, ids, own_rows
    )
    prediction = recipe.unet.apply(
        {"params": frozen["unet"]},
        recipe.schedule.add_noise(latents, noise, timesteps),
        timesteps,
        context,
    )
    target = recipe.schedule.target(latents, noise, timesteps)
    # What fills the batch up has no part in the mean, and so none in the gradient.
    each = mse(prediction, target)[: slots * examples]
    return each.reshape(slots, examples).mean(axis=1)


def gradients(
    rows: Rows, frozen: dict[str, Params], batch: Batch, recipe: Recipe
) -> tuple[Float[Array, "S"], Rows]:
    """Losses, and the gradient of each slot's loss to its own rows."""

    def total(rows: Rows) -> tuple[Array, Array]:
        # Slots share no rows, so the gradient of the sum is each slot's own.
        per_slot = losses(rows, frozen, batch, recipe)
        return per_slot.sum(), per_slot

    (_, per_slot), grads = jax.value_and_grad(total, has_aux=True)(rows)
    return per_slot, grads


def apply_gradients(
    state: State, loss: Float[Array, "S"], grads: Rows, bank: Bank, recipe: Recipe
) -> tuple[State, Metrics]:
    """One optimizer step of every slot that has not reached its last step.

    A slot whose loss, gradient or new state is not finite keeps what it had, to the
    bit, but for the counters: the next step draws another batch.
    """
    running = state.step < bank.max_train_steps
    active = bank.row_mask & running[:, None]
    updates, opt_state = jax.vmap(
        lambda g, s, r, active: recipe.optimizer.update(g, s, r, active=active)
    )(grads, state.opt_state, state.rows, active)
    rows = optax.apply_updates(state.rows, updates)
    learning_rate = jax.vmap(recipe.learning_rate)(state.step - state.skipped)
    if recipe.hold is not None:
        held = jax.tree.map(
            lambda new, first: jax.vmap(recipe.hold)(
                new, first, bank.norm, learning_rate
            ),
            rows,
            bank.initial,
        )
        rows = jax.tree.map(
            lambda held, new: jnp.where(active[..., None], held, new), held, rows
        )
    finite = _all_finite((loss, grads, rows, opt_state))

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(finite.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    rows, opt_state = jax.tree.map(
        keep, (rows, opt_state), (state.rows, state.opt_state)
    )
    skipped = running & ~finite
    metrics = Metrics(
        loss=loss,
        grad_norm=jax.vmap(optax.tree.norm)(grads),
        learning_rate=learning_rate,
        row_norm=jnp.linalg.norm(rows["text_encoder"], axis=-1),
        row_step=jnp.linalg.norm(
            rows["text_encoder"] - state.rows["text_encoder"], axis=-1
        ),
        skipped=skipped,
    )
    return State(
        state.step + running, state.skipped + skipped, rows, opt_state
    ), metrics


def _all_finite(tree: Any) -> Bool[Array, "S"]:
    """Whether every number of a slot is finite; all leaves have the slots first."""
    return functools.reduce(
        jnp.logical_and,
        (
            jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ),
    )


def train_step(
    state: State, frozen: dict[str, Params], bank: Bank, recipe: Recipe
) -> tuple[State, Metrics]:
    """Draws a batch, in `gradient_accumulation_steps` parts, and updates the rows."""

    def part(index: Array) -> tuple[Array, Rows]:
        examples = index * recipe.train_batch_size + jnp.arange(recipe.train_batch_size)
        batch = draw_batch(
            bank,
            state.step,
            examples,
            recipe.scaling_factor,
            recipe.schedule.num_timesteps,
        )
        return gradients(state.rows, frozen, batch, recipe)

    parts = recipe.gradient_accumulation_steps
    if parts == 1:
        loss, grads = part(jnp.int32(0))
    else:
        # One part at a time; only their sum is kept.
        first = part(jnp.int32(0))
        summed = jax.lax.fori_loop(
            1, parts, lambda i, sums: jax.tree.map(jnp.add, sums, part(i)), first
        )
        loss, grads = jax.tree.map(lambda x: x / parts, summed)
    return apply_gradients(state, loss, grads, bank, recipe)
