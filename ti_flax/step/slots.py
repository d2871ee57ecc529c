"""Concepts into the slots of a bank: side by side, or one in the place of another."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from ti_flax.step.bank import Bank
from ti_flax.step.state import Rows, State, init_state


class Slot(NamedTuple):
    """One concept, unpadded: what its examples are drawn from, and where rows start.

    `moments` and `sizes` have F views of each picture: itself and, where F is 2, its
    mirror image. `prompts`, `rows` and `norms`, the lengths to hold rows to, are by the
    name of the text encoder.
    """

    seed_key: Key[Array, ""]
    moments: Float[np.ndarray | Array, "N F h w Z"]
    sizes: Int32[np.ndarray | Array, "N F 6"]
    prompts: Mapping[str, Int32[np.ndarray | Array, "P L"]]
    rows: Mapping[str, Float32[np.ndarray | Array, "K D"]]
    max_train_steps: int
    norms: Mapping[str, float]


def stack(slots: Sequence[Slot]) -> tuple[Rows, Bank]:
    """Initial rows and bank of concepts side by side, padded to the largest."""
    pictures = max(len(slot.moments) for slot in slots)
    prompts = max(_num_prompts(slot) for slot in slots)
    vectors = max(_num_rows(slot) for slot in slots)
    padded = [_pad(slot, pictures, prompts, vectors) for slot in slots]
    bank = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    # A copy: the state's rows are given up in the first dispatch.
    return jax.tree.map(jnp.copy, bank.initial), bank


def refill(
    state: State,
    bank: Bank,
    index: int,
    slot: Slot,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Bank]:
    """State and bank with a new concept in slot `index`, at its first step.

    The concept must not need more padding than the bank has.
    """
    prompts = next(iter(bank.prompts.values()))
    sizes = bank.moments.shape[1], prompts.shape[1], bank.row_mask.shape[1]
    one = _pad(slot, *sizes)
    begun = init_state(jax.tree.map(lambda rows: rows[None], one.initial), optimizer)
    begun = jax.tree.map(lambda leaf: leaf[0], begun)
    return _replace((state, bank), (begun, one), jnp.int32(index))


@jax.jit
def _replace(
    many: tuple[State, Bank], one: tuple[State, Bank], index: Int[Array, ""]
) -> tuple[State, Bank]:
    return jax.tree.map(lambda old, new: old.at[index].set(new), many, one)


def _num_prompts(slot: Slot) -> int:
    return len(next(iter(slot.prompts.values())))


def _num_rows(slot: Slot) -> int:
    return len(next(iter(slot.rows.values())))


def _pad(slot: Slot, pictures: int, prompts: int, vectors: int) -> Bank:
    """A slot of the bank, without the axis S."""

    def to(length: int, array: np.ndarray | Array) -> Array:
        widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, widths)

    return Bank(
        seed_keys=slot.seed_key,
        moments=to(pictures, slot.moments),
        sizes=to(pictures, slot.sizes),
        num_pictures=jnp.int32(len(slot.moments)),
        prompts={name: to(prompts, ids) for name, ids in slot.prompts.items()},
        num_prompts=jnp.int32(_num_prompts(slot)),
        row_mask=jnp.arange(vectors) < _num_rows(slot),
        max_train_steps=jnp.int32(slot.max_train_steps),
        initial={name: to(vectors, rows) for name, rows in slot.rows.items()},
        norms={name: jnp.float32(norm) for name, norm in slot.norms.items()},
    )
