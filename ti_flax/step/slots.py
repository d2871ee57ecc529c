"""Concepts into the slots of a bank: side by side, or one in the place of another."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from ti_flax.step.bank import Bank, Bucket
from ti_flax.step.state import Metrics, Rows, Rule, State, init_state


class Encoded(NamedTuple):
    """A concept's pictures of one size, unpadded; of a size it lacks, none.

    `moments` and `sizes` have F views of each picture: its crops, each with or without
    its mirror image. `pictures` are numbers of pictures, each as often as it counts; by
    default once. `prompt_spans` are the first prompt of each picture and how many it
    has; by default every prompt is for every picture. `loss_weights` are what the
    errors of each latent count.
    """

    moments: Float[np.ndarray | Array, "N F h w Z"]
    sizes: Int32[np.ndarray | Array, "N F 6"]
    pictures: Int32[np.ndarray | Array, "M"] | None = None
    prompt_spans: Int32[np.ndarray | Array, "N 2"] | None = None
    loss_weights: Float32[np.ndarray | Array, "N F h w"] | None = None

    def listed(self) -> Int32[np.ndarray | Array, "M"]:
        if self.pictures is not None:
            return self.pictures
        return np.arange(len(self.moments), dtype=np.int32)

    def spans(self, num_prompts: int) -> Int32[np.ndarray | Array, "N 2"]:
        if self.prompt_spans is not None:
            return self.prompt_spans
        return np.tile(np.int32([0, num_prompts]), (len(self.moments), 1))


class Slot(NamedTuple):
    """One concept, unpadded: what its examples are drawn from, and where rows start.

    `buckets` are its pictures by their size, in the order that all slots have. What is
    by name is by that of the text encoder: `prompts`, `rows`, and `norms`, the lengths
    to hold rows to. `learning_rates` are those of its steps, the last of which stays.
    At `caption_dropout_rate` the last prompt takes the place of the
    drawn one. A share `unmasked_probability` of the examples is learned without masks.
    `rule` says when it has learned; by default only after `max_train_steps`.
    """

    seed_key: Key[Array, ""]
    buckets: Sequence[Encoded]
    prompts: Mapping[str, Int32[np.ndarray | Array, "P L"]]
    rows: Mapping[str, Float32[np.ndarray | Array, "K D"]]
    max_train_steps: int
    learning_rates: Float32[np.ndarray | Array, "T"]
    norms: Mapping[str, float]
    caption_dropout_rate: float = 0.0
    unmasked_probability: float = 0.0
    rule: Rule | None = None


def stack(slots: Sequence[Slot]) -> tuple[Rows, Bank]:
    """Initial rows and bank of concepts side by side, padded to the largest."""
    sizes = jax.tree.map(lambda *each: max(each), *map(_sizes, slots))
    padded = [_pad(slot, sizes) for slot in slots]
    bank = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    # A copy: the state's rows are given up in the first dispatch.
    return jax.tree.map(jnp.copy, bank.initial), bank


def begin(
    slot: Slot, optimizer: optax.GradientTransformation, window: int | None
) -> State:
    """The state of a concept alone before its first step."""
    rows = {name: jnp.array(each)[None] for name, each in slot.rows.items()}
    return init_state(rows, optimizer, window)


def refill(
    state: State, bank: Bank, index: int, slot: Slot, begun: State
) -> tuple[State, Bank]:
    """State and bank with a new concept in slot `index`.

    Its own state, alone, is `begun`. The concept must not need more padding than the
    bank has, nor masks where that has none.
    """
    sizes = _sizes_of(bank)
    one = _pad(slot, sizes)
    # What is of each row, and nothing else, has three axes.
    padded = jax.tree.map(
        lambda leaf: _to(sizes.vectors, leaf[0]) if leaf.ndim == 3 else leaf[0], begun
    )
    return _replace((state, bank), (padded, one), jnp.int32(index))


def state_of(state: State, index: int, vectors: int) -> State:
    """A copy of a slot's state as if it were alone; `vectors` of its rows are real."""
    one = _take(state, jnp.int32(index))
    return jax.tree.map(lambda leaf: leaf[:, :vectors] if leaf.ndim == 3 else leaf, one)


def padded_rows(rows: dict[str, Float[Array, "S _ D"]], bank: Bank) -> Rows:
    """The rows of each slot with zeros up to what the bank has."""
    room = bank.row_mask.shape[1]
    return {
        name: jnp.pad(each, [(0, 0), (0, room - each.shape[1]), (0, 0)])
        for name, each in rows.items()
    }


def bank_of(bank: Bank, index: int) -> Bank:
    """The bank of a slot, padded as it is."""
    return _take(bank, jnp.int32(index))


def metrics_of(metrics: Metrics, index: int, vectors: int, room: int) -> Metrics:
    """A dispatch's metrics of a slot as if it were alone.

    Of each text encoder there are `room` rows, of which `vectors` are real.
    """
    one = Metrics(*(buffer[:, index : index + 1] for buffer in metrics))

    def real(rows: Float[np.ndarray, "steps 1 EK"]) -> Float[np.ndarray, "steps 1 _"]:
        each = rows.reshape(len(rows), 1, -1, room)[..., :vectors]
        return each.reshape(len(rows), 1, -1)

    return one._replace(row_norm=real(one.row_norm), row_step=real(one.row_step))


@jax.jit
def _take(many: Any, index: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), many)


@jax.jit
def _replace(
    many: tuple[State, Bank], one: tuple[State, Bank], index: Int[Array, ""]
) -> tuple[State, Bank]:
    return jax.tree.map(lambda old, new: old.at[index].set(new), many, one)


class _BucketSizes(NamedTuple):
    """What a bucket is padded to; an array is never empty, whoever has no pictures."""

    pictures: int
    listed: int
    masked: bool


class _Sizes(NamedTuple):
    """What slots are padded to."""

    prompts: int
    rates: int
    vectors: int
    buckets: tuple[_BucketSizes, ...]


def _sizes_of(bank: Bank) -> _Sizes:
    return _Sizes(
        prompts=next(iter(bank.prompts.values())).shape[1],
        rates=bank.learning_rates.shape[1],
        vectors=bank.row_mask.shape[1],
        buckets=tuple(
            _BucketSizes(
                pictures=each.moments.shape[1],
                listed=each.pictures.shape[1],
                masked=each.loss_weights is not None,
            )
            for each in bank.buckets
        ),
    )


def _sizes(slot: Slot) -> _Sizes:
    return _Sizes(
        prompts=_num_prompts(slot),
        rates=len(slot.learning_rates),
        vectors=len(next(iter(slot.rows.values()))),
        buckets=tuple(
            _BucketSizes(
                pictures=max(1, len(each.moments)),
                listed=max(1, len(each.listed())),
                masked=each.loss_weights is not None,
            )
            for each in slot.buckets
        ),
    )


def _num_prompts(slot: Slot) -> int:
    return len(next(iter(slot.prompts.values())))


def _pad(slot: Slot, sizes: _Sizes) -> Bank:
    """A slot of the bank, without the axis S."""
    num_prompts = _num_prompts(slot)
    return Bank(
        seed_keys=slot.seed_key,
        buckets=tuple(
            _pad_bucket(each, to, num_prompts)
            for each, to in zip(slot.buckets, sizes.buckets, strict=True)
        ),
        prompts={name: _to(sizes.prompts, ids) for name, ids in slot.prompts.items()},
        num_prompts=jnp.int32(num_prompts),
        caption_dropout_rate=jnp.float32(slot.caption_dropout_rate),
        unmasked_probability=jnp.float32(slot.unmasked_probability),
        row_mask=jnp.arange(sizes.vectors) < _sizes(slot).vectors,
        max_train_steps=jnp.int32(slot.max_train_steps),
        learning_rates=_to(sizes.rates, slot.learning_rates, mode="edge"),
        rule=slot.rule or Rule.of_slot(),
        initial={name: _to(sizes.vectors, rows) for name, rows in slot.rows.items()},
        norms={name: jnp.float32(norm) for name, norm in slot.norms.items()},
    )


def _pad_bucket(bucket: Encoded, to: _BucketSizes, num_prompts: int) -> Bucket:
    weights = bucket.loss_weights
    if to.masked and weights is None:
        weights = jnp.ones(bucket.moments.shape[:-1])
    if weights is not None:
        if not to.masked:
            raise ValueError("a slot with masks in a bank without")
        weights = _to(to.pictures, weights)
    return Bucket(
        moments=_to(to.pictures, bucket.moments),
        sizes=_to(to.pictures, bucket.sizes),
        pictures=_to(to.listed, bucket.listed()),
        num_pictures=jnp.int32(len(bucket.listed())),
        prompt_spans=_to(to.pictures, bucket.spans(num_prompts)),
        loss_weights=weights,
    )


def _to(length: int, array: np.ndarray | Array, mode: str = "constant") -> Array:
    """The array, with zeros or its edge up to a length of the first axis."""
    widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, widths, mode=mode)
