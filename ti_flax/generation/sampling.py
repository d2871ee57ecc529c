"""Contexts and seeds to pictures: noise, guided sampling, decoding.

Weights are arguments of every jitted function, so that previews during training can
call them with those that lie on the devices already.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8, UInt32

from ti_flax.diffusion import samplers
from ti_flax.models import clip_text, unet, vae
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding


class Recipe(NamedTuple):
    """What pictures are made with, apart from weights; `latent_shape` is (h, w, c).

    With a `guidance_scale` up to 1 the UNet is asked once a step instead of twice, and
    the negative prompt has no effect.
    """

    unet: unet.UNet
    vae: vae.Vae
    sampler: samplers.Sampler
    guidance_scale: float
    latent_shape: tuple[int, int, int]
    mesh: jax.sharding.Mesh


class Wanted(NamedTuple):
    """N pictures of P prompts: the prompt and the seed of each, and the contexts.

    `negative` is the context of the negative prompt.
    """

    prompts: Int[np.ndarray, "N"]
    seeds: UInt32[np.ndarray, "N"]
    contexts: Float32[np.ndarray, "P L D"]
    negative: Float32[np.ndarray, "L D"]


def make_pictures(
    params: Mapping[str, Params],
    wanted: Wanted,
    recipe: Recipe,
    batch_size: int,
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Yields the pictures in order, a batch at a time, made when they are asked for.

    A picture depends on its context and its seed, and not on the rest of its batch.

    Args:
        params: those of `unet` and `vae`, replicated over the recipe's mesh.
        wanted: which pictures.
        recipe: what to make them with.
        batch_size: pictures at once, a multiple of the mesh's devices. The last batch
            is filled up, so that one executable serves them all.
    """
    guided = recipe.guidance_scale > 1
    negative = jax.device_put(wanted.negative, sharding.replicated(recipe.mesh))
    last = len(wanted.seeds) - 1
    for start in range(0, last + 1, batch_size):
        chosen = np.minimum(np.arange(start, start + batch_size), last)
        arrays = wanted.contexts[wanted.prompts[chosen]], wanted.seeds[chosen]
        context, seeds = jax.device_put(arrays, sharding.over_examples(recipe.mesh))
        latents = sample_latents(
            params["unet"],
            recipe.sampler.steps,
            context,
            negative if guided else None,
            draw_noise(seeds, recipe.latent_shape),
            recipe.guidance_scale,
            stepper=recipe.sampler.stepper,
            net=recipe.unet,
            mesh=recipe.mesh,
        )
        pixels = decode_latents(params["vae"], latents, recipe.vae, recipe.mesh)
        yield np.asarray(pixels)[: last + 1 - start]


@functools.partial(jax.jit, static_argnames="text_encoder")
def encode_prompts(
    params: Params,
    ids: Int[Array, "B L"],
    rows: Float32[Array, "K D"],
    text_encoder: clip_text.ClipText,
) -> Float32[Array, "B L D"]:
    """Contexts of prompts that all see the same learned rows."""
    own_rows = jnp.broadcast_to(rows[None], (len(ids), *rows.shape))
    return text_encoder.apply({"params": params}, ids, own_rows)


@functools.partial(jax.jit, static_argnames="shape")
def draw_noise(
    seeds: UInt32[Array, "B"], shape: tuple[int, int, int]
) -> Float32[Array, "B h w c"]:
    """Standard normal noise, each picture's from its own seed."""
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


@functools.partial(jax.jit, static_argnames=("stepper", "net", "mesh"))
def sample_latents(
    params: Params,
    steps: samplers.Steps,
    context: Float32[Array, "B L D"],
    negative: Float32[Array, "L D"] | None,
    noise: Float32[Array, "B h w c"],
    guidance_scale: Float[Array, ""],
    *,
    stepper: samplers.Stepper,
    net: unet.UNet,
    mesh: jax.sharding.Mesh,
) -> Float32[Array, "B h w c"]:
    """Latents as the UNet `net` sees them; without `negative` there is no guidance."""

    def ask(x: Array, timestep: Array, context: Array) -> Array:
        x = jax.lax.with_sharding_constraint(x, sharding.over_examples(mesh))
        timesteps = jnp.full(len(x), timestep)
        # The sampler's sums are float32 whatever the UNet computes in.
        return net.apply({"params": params}, x, timesteps, context).astype(jnp.float32)

    def ask_guided(x: Array, timestep: Array) -> Array:
        # Each picture's two questions stand side by side, and so on one device.
        both = ask(jnp.repeat(x, 2, axis=0), timestep, contexts)
        pairs = both.reshape(len(x), 2, *x.shape[1:])
        return samplers.guide(pairs[:, 0], pairs[:, 1], guidance_scale)

    if negative is None:
        return samplers.sample(
            stepper, steps, lambda x, timestep: ask(x, timestep, context), noise
        )
    negatives = jnp.broadcast_to(negative[None], context.shape)
    contexts = jnp.stack([negatives, context], axis=1).reshape(-1, *negative.shape)
    return samplers.sample(stepper, steps, ask_guided, noise)


@functools.partial(jax.jit, static_argnames=("decoder", "mesh"))
def decode_latents(
    params: Params,
    latents: Float32[Array, "B h w c"],
    decoder: vae.Vae,
    mesh: jax.sharding.Mesh,
) -> UInt8[Array, "B H W 3"]:
    """Pictures of latents as the UNet sees them, the same on every device."""
    pixels = decoder.apply(
        {"params": params}, latents / decoder.config.scaling_factor, method="decode"
    )
    levels = jnp.round(255 * jnp.clip(0.5 + 0.5 * pixels, 0, 1)).astype(jnp.uint8)
    return jax.lax.with_sharding_constraint(levels, sharding.replicated(mesh))
