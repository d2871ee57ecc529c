"""Fits the judge of generated pictures to drawn ones and ships it in the package.

    python -m ti_flax.benchmarks.quality.train_judge

Takes a few minutes on 2 CPU cores. What a small autoencoder and a few sampling steps do
to a picture (blur, blotches, noise, a shift of its colours) is done to the drawn ones
too: the judge is to tell whether a hat is there, not whether its edge is sharp.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import trange

from ti_flax.benchmarks.quality import judge
from ti_flax.models.torch_params import Params

_PICTURES = 20_000
_STYLED = 0.4  # share of pictures in another style than the plain one
_STEPS = 800
_BATCH = 96
_PEAK_RATE = 2e-3
_BLURS = 5  # passes of (1 2 1) / 4 each way, each by a random amount
_BLOTCH = 8  # pixels
_OWN_ACCURACY_PICTURES = 1000

Pixels = Float[Array, "B H W 3"]


def main() -> None:
    pictures, labels = drawn(_PICTURES, seed=0)
    judge.save_params(fit(pictures, labels, _STEPS, seed=0))
    for name, share in judge.own_accuracy(_OWN_ACCURACY_PICTURES, seed=1).items():
        print(f"{name:10} {100 * share:5.1f} %")


def drawn(
    count: int, seed: int
) -> tuple[UInt8[np.ndarray, "N H W 3"], Int[np.ndarray, "N attributes"]]:
    """Pictures and what they show."""
    rng = np.random.default_rng(seed)
    scenes = [judge.random_scene(rng, rng.random() < _STYLED) for _ in trange(count)]
    return judge.draw_all(scenes), np.array([judge.labels(scene) for scene in scenes])


def fit(
    pictures: UInt8[np.ndarray, "N H W 3"],
    labels: Int[np.ndarray, "N attributes"],
    num_steps: int,
    seed: int,
) -> Params:
    """The judge's params after `num_steps` of Adam."""
    rng = np.random.default_rng(seed)
    params_key, spoil_key = jax.random.split(jax.random.key(seed))
    params = judge.Judge().init(params_key, judge.scaled(pictures[:1]))["params"]
    rate = optax.cosine_onecycle_schedule(num_steps, _PEAK_RATE, pct_start=0.1)
    optimizer = optax.adam(rate)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, chosen, true, key):
        gradient = jax.grad(_loss)(params, spoil(judge.scaled(chosen), key), true)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for index in trange(num_steps):
        chosen = rng.integers(len(pictures), size=_BATCH)
        key = jax.random.fold_in(spoil_key, index)
        params, state = step(params, state, pictures[chosen], labels[chosen], key)
    return params


def _loss(
    params: Params, pixels: Pixels, true: Int[Array, "B attributes"]
) -> Float[Array, ""]:
    parts = judge.split_logits(judge.Judge().apply({"params": params}, pixels))
    return sum(
        optax.softmax_cross_entropy_with_integer_labels(part, true[:, index]).mean()
        for index, part in enumerate(parts.values())
    )


def spoil(pixels: Pixels, key: Key[Array, ""]) -> Pixels:
    """Blurred, blotched, noisy and shifted in colour, each by a random amount."""
    blur_key, blotch_key, noise_key, shift_key, amount_key = jax.random.split(key, 5)
    count, height, width, _ = pixels.shape
    blurs = jax.random.uniform(blur_key, (_BLURS, count, 1, 1, 1))
    amounts = jax.random.uniform(amount_key, (3, count, 1, 1, 1))
    # One picture in five stays sharp.
    for amount in blurs * (blurs[:1] < 0.8):
        pixels = pixels + amount * (_blurred(pixels) - pixels)
    coarse = (count, height // _BLOTCH, width // _BLOTCH, 3)
    blotches = jax.image.resize(
        jax.random.normal(blotch_key, coarse), pixels.shape, "linear"
    )
    noise = jax.random.normal(noise_key, pixels.shape)
    shift = jax.random.normal(shift_key, (count, 1, 1, 3))
    return (
        pixels
        + 0.2 * amounts[0] * blotches
        + 0.12 * amounts[1] * noise
        + 0.1 * amounts[2] * shift
    )


def _blurred(pixels: Pixels) -> Pixels:
    """The kernel (1 2 1) / 4 down and across, edges repeated."""
    for axis in (1, 2):
        padding = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(pixels, padding, mode="edge")
        length = pixels.shape[axis]
        before, after = (
            jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
            for start in (0, 2)
        )
        pixels = 0.5 * pixels + 0.25 * (before + after)
    return pixels


if __name__ == "__main__":
    main()
