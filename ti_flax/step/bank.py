"""What examples are drawn from, and how."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Key

from ti_flax.models import vae
from ti_flax.step.state import Rows


class Bank(NamedTuple):
    """What examples are drawn from; constant during a run.

    Slots with fewer pictures or prompts than others are padded; the counts say how many
    are real. F is 2 where pictures are mirrored at random, else 1.
    """

    keys: Key[Array, "S"]
    moments: Float[Array, "S N F h w Z"]
    num_pictures: Int[Array, "S"]
    prompts: Int[Array, "S P L"]
    num_prompts: Int[Array, "S"]
    row_mask: Bool[Array, "S K"]
    max_train_steps: Int[Array, "S"]
    # Where rows started, and the length to hold them to: what a `Hold` needs.
    initial: Rows | None = None
    norm: Float[Array, "S"] | None = None


class Batch(NamedTuple):
    """Examples of every slot; latents are scaled as the UNet sees them."""

    latents: Float[Array, "S B h w C"]
    noise: Float[Array, "S B h w C"]
    timesteps: Int[Array, "S B"]
    ids: Int[Array, "S B L"]


def draw_batch(
    bank: Bank,
    step: Int[Array, "S"],
    examples: Int[Array, "B"],
    scaling_factor: float,
    train_timesteps: int,
) -> Batch:
    """Examples as a function of (seed, step, example index) and of nothing else.

    Picture, mirror, prompt, timestep, noise and the sample of the VAE's posterior are
    all drawn from the key of the example, whatever device it is drawn on.
    """

    def example(slot: Bank, step: Array, index: Array) -> Batch:
        key = jax.random.fold_in(jax.random.fold_in(slot.keys, step), index)
        (
            picture_key,
            mirror_key,
            prompt_key,
            timestep_key,
            noise_key,
            posterior_key,
        ) = jax.random.split(key, 6)
        picture = jax.random.randint(picture_key, (), 0, slot.num_pictures)
        mirror = jax.random.randint(mirror_key, (), 0, slot.moments.shape[1])
        prompt = jax.random.randint(prompt_key, (), 0, slot.num_prompts)
        moments = slot.moments[picture, mirror]
        shape = (*moments.shape[:-1], moments.shape[-1] // 2)
        posterior = vae.sample_posterior(
            moments, jax.random.normal(posterior_key, shape)
        )
        return Batch(
            latents=posterior * scaling_factor,
            noise=jax.random.normal(noise_key, shape),
            timesteps=jax.random.randint(timestep_key, (), 0, train_timesteps),
            ids=slot.prompts[prompt],
        )

    over_examples = jax.vmap(example, in_axes=(None, None, 0))
    return jax.vmap(over_examples, in_axes=(0, 0, None))(bank, step, examples)
