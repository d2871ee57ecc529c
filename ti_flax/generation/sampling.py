"""Prompts and seeds to images: noise, guided sampling, decoding.

Weights are arguments of every jitted function, so that previews during training can
call them with those that lie on the devices already.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8, UInt32

from ti_flax.diffusion import samplers
from ti_flax.models.family import Conditioning, Family, LatentScale, encode_text
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding


class SamplingRecipe(NamedTuple):
    """What images are made with, apart from weights; `latent_shape` is (h, w, c).

    With a `guidance_scale` up to 1, and where the denoiser is told it, it is asked once
    a step instead of twice, and the negative prompt has no effect.
    """

    family: Family
    sampler: samplers.Sampler
    guidance_scale: float
    latent_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh


class Wanted(NamedTuple):
    """N images of P prompts: the prompt and the seed of each.

    `told` is what the denoiser is told of the P prompts and, last, of the negative one.
    """

    prompts: Int[np.ndarray, "N"]
    seeds: UInt32[np.ndarray, "N"]
    told: Conditioning


def make_images(
    params: Mapping[str, Params],
    wanted: Wanted,
    recipe: SamplingRecipe,
    batch_size: int,
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Yields the images in order, a batch at a time, made when they are asked for.

    An image depends on its prompt and its seed, and not on the rest of its batch.

    Args:
        params: the denoiser's and the autoencoder's, replicated over the mesh.
        wanted: which images.
        recipe: what to make them with.
        batch_size: images at once, a multiple of the mesh's devices. The last batch
            is filled up, so that one executable serves them all.
    """
    family, mesh = recipe.family, recipe.mesh
    everywhere, examples = sharding.replicated(mesh), sharding.over_examples(mesh)
    negative = None
    told_scale = recipe.guidance_scale if family.tells_guidance else None
    if recipe.guidance_scale > 1 and not family.tells_guidance:
        negative = jax.device_put(_pick(wanted.told, -1), everywhere)
    canvas = None
    if family.canvas is not None:
        pixels = tuple(family.downscale * side for side in recipe.latent_shape[:2])
        canvas = family.canvas(params[family.autoencoder.name], size=pixels)
    last = len(wanted.seeds) - 1
    for start in range(0, last + 1, batch_size):
        chosen = np.minimum(np.arange(start, start + batch_size), last)
        arrays = _pick(wanted.told, wanted.prompts[chosen]), wanted.seeds[chosen]
        told, seeds = jax.device_put(arrays, examples)
        steps = recipe.sampler.steps.renewed(
            functools.partial(draw_noises, seeds, recipe.latent_shape)
        )
        latents = sample_latents(
            params[family.denoiser.name],
            steps,
            told,
            negative,
            draw_noise(seeds, recipe.latent_shape),
            recipe.guidance_scale,
            canvas,
            told_scale,
            stepper=recipe.sampler.stepper,
            denoiser=family.denoiser.module,
            mesh=mesh,
        )
        pixels = decode_latents(
            params[family.autoencoder.name],
            latents,
            autoencoder=family.autoencoder.module,
            scale=family.scale,
            mesh=mesh,
        )
        yield np.asarray(pixels)[: last + 1 - start]


def _pick(told: Conditioning, index: Any) -> Conditioning:
    return tuple(array[index] for array in told)


def encode_prompts(
    params: Mapping[str, Params],
    ids: Mapping[str, Int[Array | np.ndarray, "P L"]],
    rows: Mapping[str, Float32[Array | np.ndarray, "K D"]],
    family: Family,
    size: tuple[int, int],
    last_is_empty: bool = False,
) -> Conditioning:
    """What the denoiser is told of P prompts that all see the same learned rows.

    `params` are those of the text encoders, `size` is (height, width) of the images in
    pixels; `last_is_empty` where the last prompt, the negative one, has no text. The
    arrays lie in host memory.
    """
    count = len(next(iter(ids.values())))
    sizes = np.tile(np.array([*size, 0, 0, *size], np.int32), (count, 1))
    encoded = _encode_prompts(
        {encoder.name: params[encoder.name] for encoder in family.text_encoders},
        dict(ids),
        dict(rows),
        sizes,
        text_encoders=family.text_encoders,
        condition=family.condition,
    )
    told = jax.tree.map(sharding.whole, encoded)
    if not last_is_empty or family.tell_nothing is None:
        return told
    nothing = family.tell_nothing(_pick(told, slice(-1, None)))
    return jax.tree.map(
        lambda all_, last: np.concatenate([all_[:-1], last]), told, nothing
    )


# Statics that compare by value: a model that is opened again compiles nothing.
@functools.partial(jax.jit, static_argnames=("text_encoders", "condition"))
def _encode_prompts(params, ids, rows, sizes, *, text_encoders, condition):
    own = {
        name: jnp.broadcast_to(each[None], (len(sizes), *each.shape))
        for name, each in rows.items()
    }
    return encode_text(text_encoders, condition)(params, ids, own, sizes)


@functools.partial(jax.jit, static_argnames="shape")
def draw_noise(
    seeds: UInt32[Array, "B"], shape: tuple[int, int, int]
) -> Float32[Array, "B h w c"]:
    """Standard normal noise, each picture's from its own seed."""

    def draw(seed: Array) -> Array:
        return jax.random.normal(jax.random.key(seed, impl="threefry2x32"), shape)

    return jax.vmap(draw)(seeds)


@functools.partial(jax.jit, static_argnames=("shape", "count"))
def draw_noises(
    seeds: UInt32[Array, "B"], shape: tuple[int, int, int], count: int
) -> Float32[Array, "N B h w c"]:
    """Standard normal noise for each of `count` steps, each picture's from its seed."""

    def draw(step: Array, seed: Array) -> Array:
        # `draw_noise` has the key itself.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
        return jax.random.normal(key, shape)

    of_seeds = jax.vmap(draw, in_axes=(None, 0))
    return jax.vmap(of_seeds, in_axes=(0, None))(jnp.arange(count), seeds)


@functools.partial(jax.jit, static_argnames=("stepper", "denoiser", "mesh"))
def sample_latents(
    params: Params,
    steps: samplers.Steps,
    told: Conditioning,
    negative: Conditioning | None,
    noise: Float32[Array, "B h w c"],
    guidance_scale: Float[Array, ""],
    canvas: Float[Array, "h w _"] | None = None,
    told_scale: Float[Array, ""] | None = None,
    *,
    stepper: samplers.Stepper,
    denoiser: nn.Module,
    mesh: jax.sharding.Mesh,
) -> Float32[Array, "B h w c"]:
    """Latents as the denoiser sees them; without `negative` there is no guidance.

    `told` has an entry for each image first; `negative` is without that axis. `canvas`
    is the family's, what the denoiser sees beside the latents; `told_scale` is given
    to one that is told the guidance scale.
    """

    def ask(x: Array, timestep: Array, told: Conditioning) -> Array:
        x = jax.lax.with_sharding_constraint(x, sharding.over_examples(mesh))
        timesteps = jnp.full(len(x), timestep)
        if canvas is not None:
            seen = jnp.broadcast_to(canvas, (*x.shape[:-1], canvas.shape[-1]))
            x = jnp.concatenate([x, seen], axis=-1)
        # The sampler's sums are float32 whatever the denoiser computes in.
        more = {}
        if told_scale is not None:
            more["guidance"] = jnp.full(len(x), told_scale)
        predicted = denoiser.apply({"params": params}, x, timesteps, *told, **more)
        return predicted.astype(jnp.float32)

    def beside(negative: Array, told: Array) -> Array:
        negatives = jnp.broadcast_to(negative[None], told.shape)
        return jnp.stack([negatives, told], axis=1).reshape(-1, *negative.shape)

    def ask_guided(x: Array, timestep: Array) -> Array:
        # Each image's two questions stand side by side, and so on one device.
        both = ask(jnp.repeat(x, 2, axis=0), timestep, pairs_told)
        pairs = both.reshape(len(x), 2, *x.shape[1:])
        return samplers.guide(pairs[:, 0], pairs[:, 1], guidance_scale)

    if negative is None:
        return samplers.sample(
            stepper, steps, lambda x, timestep: ask(x, timestep, told), noise
        )
    pairs_told = jax.tree.map(beside, negative, told)
    return samplers.sample(stepper, steps, ask_guided, noise)


@functools.partial(jax.jit, static_argnames=("autoencoder", "scale", "mesh"))
def decode_latents(
    params: Params,
    latents: Float32[Array, "B h w c"],
    *,
    autoencoder: nn.Module,
    scale: LatentScale,
    mesh: jax.sharding.Mesh,
) -> UInt8[Array, "B H W 3"]:
    """Images of latents as the denoiser sees them, the same on every device."""
    pixels = autoencoder.apply(
        {"params": params}, scale.to_autoencoder(latents), method="decode"
    )
    levels = jnp.round(255 * jnp.clip(0.5 + 0.5 * pixels, 0, 1)).astype(jnp.uint8)
    return jax.lax.with_sharding_constraint(levels, sharding.replicated(mesh))
