"""What examples are drawn from, a slot a concept, and how."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ti_flax.diffusion.objective import PLAIN, Objective
from ti_flax.models.family import Family
from ti_flax.step.state import Rows, Rule

# Keys of an example: `split` gives the first six, of which `fold_in` must stay clear.
_OBJECTIVE_KEY = 16
_CAPTION_DROPOUT_KEY = 100
_UNMASKED_KEY = 101
# Of a step, beside the keys of its examples and of its bucket.
_STRATA_KEY = 2**32 - 2


class Bucket(NamedTuple):
    """The pictures of one size, of every slot; a slot may have none."""

    # F views of each picture: its crops, each with or without its mirror image.
    moments: Float[Array, "S N F h w Z"]
    # (height, width) of the original, (top, left) of the crop, (height, width) of it.
    sizes: Int[Array, "S N F 6"]
    # Which pictures to draw from: each as often as it counts, in `num_pictures` places.
    pictures: Int[Array, "S M"]
    num_pictures: Int[Array, "S"]
    # The prompts of each picture: the first one, and how many.
    prompt_spans: Int[Array, "S N 2"]
    # What the errors of each latent count; None where no slot has masks.
    loss_weights: Float[Array, "S N F h w"] | None


class Bank(NamedTuple):
    """Slots side by side; constant during a run.

    Slots with fewer pictures, prompts or rows than others are padded; the counts and
    the mask say what is real. Learning rates go on as their last.
    """

    seed_keys: Key[Array, "S"]
    buckets: tuple[Bucket, ...]
    prompts: dict[str, Int[Array, "S P L"]]
    num_prompts: Int[Array, "S"]
    # How often the last prompt, which is empty then, takes the place of the drawn one.
    caption_dropout_rate: Float[Array, "S"]
    # How often the errors of all latents count 1, whatever the masks.
    unmasked_probability: Float[Array, "S"]
    row_mask: Bool[Array, "S K"]
    max_train_steps: Int[Array, "S"]
    # Of each step that counts; the last stays.
    learning_rates: Float[Array, "S T"]
    rule: Rule
    # Where rows started, and the lengths to hold them to: what a `Hold` needs.
    initial: Rows
    norms: dict[str, Float[Array, "S"]]


class Batch(NamedTuple):
    """Examples of every slot; latents are scaled as the denoiser sees them.

    An inpainting model's have the channels of a grey picture behind the c that are
    noised.
    """

    latents: Float[Array, "S B h w _"]
    noise: Float[Array, "S B h w c"]
    times: Int[Array, "S B"]
    ids: dict[str, Int[Array, "S B L"]]
    sizes: Int[Array, "S B 6"]
    # What x_t is made with, where it is not `noise`: that stays the target's.
    input_noise: Float[Array, "S B h w c"] | None = None
    # What the error of each latent counts, where not all count 1.
    loss_weights: Float[Array, "S B h w"] | None = None


def draw_batch(
    bank: Bank,
    step: Int[Array, "S"],
    examples: Int[Array, "B"],
    family: Family,
    objective: Objective = PLAIN,
) -> Batch:
    """Examples as a function of (seed, step, example index) and of nothing else.

    `bank` has one bucket: see `buckets.only`.
    Picture, view, prompt, time, noise and the sample of the autoencoder's posterior
    are all drawn from the key of the example, whatever device it is drawn on; where
    times are spread over a step's examples, their offset from that of the step.
    """

    (bucket,) = bank.buckets

    def example(slot: Bank, bucket: Bucket, step: Array, index: Array) -> Batch:
        step_key = jax.random.fold_in(slot.seed_keys, step)
        key = jax.random.fold_in(step_key, index)
        picture_key, view_key, prompt_key, time_key, noise_key, posterior_key = (
            jax.random.split(key, 6)
        )
        place = jax.random.randint(picture_key, (), 0, bucket.num_pictures)
        picture = bucket.pictures[place]
        view = jax.random.randint(view_key, (), 0, bucket.moments.shape[1])
        first, count = bucket.prompt_spans[picture]
        prompt = first + jax.random.randint(prompt_key, (), 0, count)
        dropout_key = jax.random.fold_in(key, _CAPTION_DROPOUT_KEY)
        dropped = jax.random.uniform(dropout_key) < slot.caption_dropout_rate
        prompt = jnp.where(dropped, slot.num_prompts - 1, prompt)
        weights = bucket.loss_weights
        if weights is not None:
            unmasked = jax.random.uniform(jax.random.fold_in(key, _UNMASKED_KEY))
            whole = unmasked < slot.unmasked_probability
            weights = jnp.where(whole, 1.0, weights[picture, view])
        moments = bucket.moments[picture, view]
        shape = (*moments.shape[:-1], family.latent_channels)
        posterior = family.sample_posterior(
            moments, jax.random.normal(posterior_key, shape)
        )
        noise, input_noise = objective.shape_noise(
            jax.random.fold_in(key, _OBJECTIVE_KEY), jax.random.normal(noise_key, shape)
        )
        return Batch(
            latents=family.scale.to_denoiser(posterior),
            noise=noise,
            times=_draw_time(time_key, step_key, index, objective, family),
            ids={name: prompts[prompt] for name, prompts in slot.prompts.items()},
            sizes=bucket.sizes[picture, view],
            input_noise=input_noise,
            loss_weights=weights,
        )

    over_examples = jax.vmap(example, in_axes=(None, None, None, 0))
    over_slots = jax.vmap(over_examples, in_axes=(0, 0, 0, None))
    return over_slots(bank, bucket, step, examples)


def _draw_time(
    key: Key[Array, ""],
    step_key: Key[Array, ""],
    index: Int[Array, ""],
    objective: Objective,
    family: Family,
) -> Int[Array, ""]:
    """From the example's key, or where times are spread over a step from the step's."""
    if objective.strata is None:
        return objective.draw_times(key, family.process)
    share = objective.spread(jax.random.fold_in(step_key, _STRATA_KEY), index)
    return objective.draw_times(key, family.process, share)
