"""The loss on a fixed set of examples."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank, draw_batch
from ti_flax.step.state import Rows

# At least so many examples: a validation takes a forward pass of each.
_FIXED_EXAMPLES = 16


def compile_fixed_loss(
    recipe: train_step.StepRecipe,
) -> Callable[
    [Rows, Mapping[str, Params], Bank],
    Float[jax.Array, "S"],
]:
    """The loss on a set of examples that is the same at every step of a run.

    Pictures, prompts, noise and posterior samples are drawn as those of a step that no
    run reaches, and so are not those of any train step; timesteps are spread evenly.
    """
    batch_size = recipe.train_batch_size
    parts = math.ceil(_FIXED_EXAMPLES / batch_size)
    process = recipe.family.process

    @functools.partial(jax.jit, out_shardings=sharding.replicated(recipe.mesh))
    def fixed_loss(rows, frozen, bank):
        never = jnp.full_like(bank.max_train_steps, jnp.iinfo(jnp.int32).max)

        def part(index: Int[Array, ""]) -> Float[Array, "S"]:
            examples = index * batch_size + jnp.arange(batch_size)
            batch = draw_batch(bank, never, examples, recipe.family)
            spread = process.spread_times(examples, parts * batch_size)
            batch = batch._replace(times=jnp.broadcast_to(spread, batch.times.shape))
            return train_step.losses(rows, frozen, batch, recipe)

        return jax.lax.map(part, jnp.arange(parts)).mean(axis=0)

    return fixed_loss
