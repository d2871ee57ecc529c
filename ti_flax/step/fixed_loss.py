"""The loss on a fixed set of examples."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ti_flax.diffusion.objective import PLAIN
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import buckets, train_step
from ti_flax.step.bank import Bank, draw_batch
from ti_flax.step.state import Rows

# At least so many examples: a validation takes a forward pass of each.
_FIXED_EXAMPLES = 16


class FixedLoss(NamedTuple):
    """Of each slot: over all examples, and over those of each quarter of the times.

    The first quarter has the least noise.
    """

    mean: Float[Array, "S"]
    quarters: Float[Array, "S 4"]


def num_examples(batch_size: int) -> int:
    """How many examples the loss is over: whole batches."""
    return batch_size * math.ceil(_FIXED_EXAMPLES / batch_size)


def compile_fixed_loss(
    recipe: train_step.StepRecipe,
) -> Callable[[Rows, Mapping[str, Params], Bank], FixedLoss]:
    """The jitted `fixed_loss`."""
    return jax.jit(
        functools.partial(fixed_loss, recipe=recipe),
        out_shardings=sharding.replicated(recipe.mesh),
    )


def fixed_loss(
    rows: Rows, frozen: Mapping[str, Params], bank: Bank, recipe: train_step.StepRecipe
) -> FixedLoss:
    """The loss on a set of examples that is the same at every step of a run.

    Pictures, prompts, noise and posterior samples are drawn as those of a step that no
    run reaches, and so are not those of any train step; timesteps are spread evenly.
    It is the plain squared error of whole pictures under plain noise whatever a run's
    own objective and masks are, so that runs with others compare. Of several sizes of
    pictures it is the mean of such a loss over each, as often as its pictures count.
    """
    recipe = recipe._replace(objective=PLAIN)
    batch_size = recipe.train_batch_size
    count = num_examples(batch_size)
    parts = count // batch_size
    process = recipe.family.process
    # By the middles of `count` equal parts, as the times are spread.
    quarter = 2 * (2 * np.arange(count) + 1) // count
    share = np.eye(4, dtype=np.float32)[quarter] / np.float32(np.bincount(quarter))

    never = jnp.full_like(bank.max_train_steps, jnp.iinfo(jnp.int32).max)

    def part(index: Int[Array, ""], bank: Bank) -> Float[Array, "S B"]:
        examples = index * batch_size + jnp.arange(batch_size)
        batch = draw_batch(bank, never, examples, recipe.family)
        spread = process.spread_times(examples, count)
        times = jnp.broadcast_to(spread, batch.times.shape)
        batch = batch._replace(times=times, loss_weights=None)
        return train_step.example_losses(rows, frozen, batch, recipe)

    def of_bucket(bucket: int) -> Float[Array, "parts S B"]:
        one = functools.partial(part, bank=buckets.only(bank, bucket))
        return jax.lax.map(one, jnp.arange(parts))

    each = of_bucket(0)
    if len(bank.buckets) > 1:
        each = _weighted(bank, [of_bucket(i) for i in range(len(bank.buckets))])
    by_example = jnp.moveaxis(each, 0, 1).reshape(each.shape[1], count)
    # A sum, not a matrix product, which some devices round to bfloat16.
    quarters = (by_example[:, :, None] * share[None]).sum(axis=1)
    return FixedLoss(each.mean(axis=2).mean(axis=0), quarters)


def _weighted(
    bank: Bank, losses: list[Float[Array, "parts S B"]]
) -> Float[Array, "parts S B"]:
    """The mean over the buckets, each as its pictures count; none where it has none."""
    counts = buckets.counts(bank)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return sum(
        jnp.where(share > 0, share * loss, 0.0)
        for share, loss in zip(shares.T[:, None, :, None], losses, strict=True)
    )
