"""Pictures of several sizes: which of them a step is of, in one executable for all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ti_flax.step.bank import Bank
from ti_flax.step.state import Rows

# Beside the keys of a step's examples, of which none has this index.
_BUCKET_KEY = 2**32 - 1


def only(bank: Bank, bucket: int) -> Bank:
    """The bank with the pictures of one bucket alone."""
    return bank._replace(buckets=(bank.buckets[bucket],))


def counts(bank: Bank) -> Int[Array, "S G"]:
    """How often the pictures of each of G buckets count together."""
    return jnp.stack([each.num_pictures for each in bank.buckets], axis=1)


def draw(bank: Bank, step: Int[Array, "S"]) -> Int[Array, "S"]:
    """The bucket of each slot's next step, as a function of (seed, step).

    A bucket is drawn as often as its pictures count, so that every picture is learned
    from equally often.
    """

    def one(key: Key[Array, ""], step: Array, counts: Int[Array, "G"]) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(key, step), _BUCKET_KEY)
        place = jax.random.randint(key, (), 0, counts.sum())
        return (place >= jnp.cumsum(counts)).sum()

    return jax.vmap(one)(bank.seed_keys, step, counts(bank))


def in_turns(
    function: Callable[[Rows, Int[Array, "S"], Bank], Any],
    rows: Rows,
    step: Int[Array, "S"],
    bank: Bank,
) -> Any:
    """`function(rows, step, bank)` of one slot after the other, each of its own bucket.

    What a slot draws cannot depend on its neighbours, so slots of different sizes do
    not share a batch.
    """

    def turn(slot: tuple[dict[str, Array], Array, Bank]) -> Any:
        rows, step, own = jax.tree.map(lambda leaf: leaf[None], slot)

        def branch(index: int) -> Callable[[], Any]:
            return lambda: function(rows, step, only(own, index))

        branches = [branch(index) for index in range(len(own.buckets))]
        taken = jax.lax.switch(draw(own, step)[0], branches)
        return jax.tree.map(lambda leaf: leaf[0], taken)

    return jax.lax.map(turn, (rows, step, bank))
