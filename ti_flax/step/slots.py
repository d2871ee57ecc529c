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
    name of the text encoder. `pictures` are numbers of pictures, each as often as it
    counts; by default once. `prompt_spans` are the first prompt of each picture and how
    many it has; by default every prompt is for every picture. At `caption_dropout_rate`
    the last prompt takes the place of the drawn one. `loss_weights` are what the errors
    of each latent count, but for a share `unmasked_probability` of the examples.
    """

    seed_key: Key[Array, ""]
    moments: Float[np.ndarray | Array, "N F h w Z"]
    sizes: Int32[np.ndarray | Array, "N F 6"]
    prompts: Mapping[str, Int32[np.ndarray | Array, "P L"]]
    rows: Mapping[str, Float32[np.ndarray | Array, "K D"]]
    max_train_steps: int
    norms: Mapping[str, float]
    pictures: Int32[np.ndarray | Array, "M"] | None = None
    prompt_spans: Int32[np.ndarray | Array, "N 2"] | None = None
    caption_dropout_rate: float = 0.0
    loss_weights: Float32[np.ndarray | Array, "N F h w"] | None = None
    unmasked_probability: float = 0.0

    def listed(self) -> Int32[np.ndarray | Array, "M"]:
        if self.pictures is not None:
            return self.pictures
        return np.arange(len(self.moments), dtype=np.int32)

    def spans(self) -> Int32[np.ndarray | Array, "N 2"]:
        if self.prompt_spans is not None:
            return self.prompt_spans
        return np.tile(np.int32([0, _num_prompts(self)]), (len(self.moments), 1))


def stack(slots: Sequence[Slot]) -> tuple[Rows, Bank]:
    """Initial rows and bank of concepts side by side, padded to the largest."""
    sizes = _Sizes(*(max(each) for each in zip(*map(_sizes, slots), strict=True)))
    padded = [_pad(slot, sizes) for slot in slots]
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

    The concept must not need more padding than the bank has, nor masks where that has
    none.
    """
    prompts = next(iter(bank.prompts.values()))
    sizes = _Sizes(
        pictures=bank.moments.shape[1],
        listed=bank.pictures.shape[1],
        prompts=prompts.shape[1],
        vectors=bank.row_mask.shape[1],
        masked=bank.loss_weights is not None,
    )
    one = _pad(slot, sizes)
    begun = init_state(jax.tree.map(lambda rows: rows[None], one.initial), optimizer)
    begun = jax.tree.map(lambda leaf: leaf[0], begun)
    return _replace((state, bank), (begun, one), jnp.int32(index))


@jax.jit
def _replace(
    many: tuple[State, Bank], one: tuple[State, Bank], index: Int[Array, ""]
) -> tuple[State, Bank]:
    return jax.tree.map(lambda old, new: old.at[index].set(new), many, one)


class _Sizes(NamedTuple):
    """What slots are padded to."""

    pictures: int
    listed: int
    prompts: int
    vectors: int
    masked: bool


def _sizes(slot: Slot) -> _Sizes:
    vectors = len(next(iter(slot.rows.values())))
    return _Sizes(
        pictures=len(slot.moments),
        listed=len(slot.listed()),
        prompts=_num_prompts(slot),
        vectors=vectors,
        masked=slot.loss_weights is not None,
    )


def _num_prompts(slot: Slot) -> int:
    return len(next(iter(slot.prompts.values())))


def _pad(slot: Slot, sizes: _Sizes) -> Bank:
    """A slot of the bank, without the axis S."""

    def to(length: int, array: np.ndarray | Array) -> Array:
        widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, widths)

    weights = slot.loss_weights
    if sizes.masked and weights is None:
        weights = jnp.ones(slot.moments.shape[:-1])
    if weights is not None:
        if not sizes.masked:
            raise ValueError("a slot with masks in a bank without")
        weights = to(sizes.pictures, weights)
    return Bank(
        seed_keys=slot.seed_key,
        moments=to(sizes.pictures, slot.moments),
        sizes=to(sizes.pictures, slot.sizes),
        pictures=to(sizes.listed, slot.listed()),
        num_pictures=jnp.int32(len(slot.listed())),
        prompts={name: to(sizes.prompts, ids) for name, ids in slot.prompts.items()},
        num_prompts=jnp.int32(_num_prompts(slot)),
        prompt_spans=to(sizes.pictures, slot.spans()),
        caption_dropout_rate=jnp.float32(slot.caption_dropout_rate),
        loss_weights=weights,
        unmasked_probability=jnp.float32(slot.unmasked_probability),
        row_mask=jnp.arange(sizes.vectors) < _sizes(slot).vectors,
        max_train_steps=jnp.int32(slot.max_train_steps),
        initial={name: to(sizes.vectors, rows) for name, rows in slot.rows.items()},
        norms={name: jnp.float32(norm) for name, norm in slot.norms.items()},
    )
