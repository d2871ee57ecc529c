"""What examples are drawn from, a slot a concept, and how."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from ti_flax.models.family import Family
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


class Bank(NamedTuple):
    """Slots side by side; constant during a run.

    Slots with fewer pictures, prompts or rows than others are padded; the counts and
    the mask say what is real.
    """

    seed_keys: Key[Array, "S"]
    moments: Float[Array, "S N F h w Z"]
    # (height, width) of the original, (top, left) of the crop, (height, width) of it.
    sizes: Int[Array, "S N F 6"]
    num_pictures: Int[Array, "S"]
    prompts: dict[str, Int[Array, "S P L"]]
    num_prompts: Int[Array, "S"]
    row_mask: Bool[Array, "S K"]
    max_train_steps: Int[Array, "S"]
    # Where rows started, and the lengths to hold them to: what a `Hold` needs.
    initial: Rows
    norms: dict[str, Float[Array, "S"]]


class Batch(NamedTuple):
    """Examples of every slot; latents are scaled as the denoiser sees them."""

    latents: Float[Array, "S B h w c"]
    noise: Float[Array, "S B h w c"]
    times: Int[Array, "S B"]
    ids: dict[str, Int[Array, "S B L"]]
    sizes: Int[Array, "S B 6"]


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


def draw_batch(
    bank: Bank, step: Int[Array, "S"], examples: Int[Array, "B"], family: Family
) -> Batch:
    """Examples as a function of (seed, step, example index) and of nothing else.

    Picture, mirror, prompt, time, noise and the sample of the autoencoder's posterior
    are all drawn from the key of the example, whatever device it is drawn on.
    """

    def example(slot: Bank, step: Array, index: Array) -> Batch:
        key = jax.random.fold_in(jax.random.fold_in(slot.seed_keys, step), index)
        (
            picture_key,
            mirror_key,
            prompt_key,
            time_key,
            noise_key,
            posterior_key,
        ) = jax.random.split(key, 6)
        picture = jax.random.randint(picture_key, (), 0, slot.num_pictures)
        mirror = jax.random.randint(mirror_key, (), 0, slot.moments.shape[1])
        prompt = jax.random.randint(prompt_key, (), 0, slot.num_prompts)
        moments = slot.moments[picture, mirror]
        shape = (*moments.shape[:-1], moments.shape[-1] // 2)
        posterior = family.sample_posterior(
            moments, jax.random.normal(posterior_key, shape)
        )
        return Batch(
            latents=family.scale.to_denoiser(posterior),
            noise=jax.random.normal(noise_key, shape),
            times=family.process.draw_times(time_key),
            ids={name: prompts[prompt] for name, prompts in slot.prompts.items()},
            sizes=slot.sizes[picture, mirror],
        )

    over_examples = jax.vmap(example, in_axes=(None, None, 0))
    return jax.vmap(over_examples, in_axes=(0, 0, None))(bank, step, examples)
