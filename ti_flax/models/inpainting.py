"""Inpainting models, told to paint the whole picture (Rombach et al. 2022, sec. 4.5).

Beside x_t their UNet sees a mask, 1 where it paints, and the latents of the picture
that is grey there. Here that is everywhere, in training and in generation: so they were
trained on a quarter of their own examples (card of stable-diffusion-inpainting).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ti_flax.diffusion.process import Ddpm
from ti_flax.models import vae
from ti_flax.models.family import Family, LatentScale, Part
from ti_flax.models.torch_params import Params


def channels_of(latent_channels: int) -> int:
    """What such a UNet sees: x_t, the mask, and latents."""
    return 2 * latent_channels + 1


class InpaintingVae(vae.Vae):
    """The autoencoder; to moments it adds the mean of a grey picture's latents."""

    def encode(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        """Pixels in [-1, 1] to means, log-variances and, of 0 everywhere, means."""
        moments = super().encode(pixels)
        # Of the same size: the borders of a constant picture are not constant.
        grey = super().encode(jnp.zeros_like(pixels[:1]))
        means = jnp.split(grey, 2, axis=-1)[0]
        means = jnp.broadcast_to(means, (*moments.shape[:-1], means.shape[-1]))
        return jnp.concatenate([moments, means], axis=-1)


class Inpainting(Ddpm):
    """The process of latents [z, grey]: z is noised, and the UNet sees all three."""

    def add_noise(
        self,
        x0: Float[Array, "B *place both"],
        eps: Float[Array, "B *place c"],
        timesteps: Int[Array, "B"],
    ) -> Float[Array, "B *place seen"]:
        """[x_t, mask, grey]."""
        z, grey = jnp.split(x0, 2, axis=-1)
        x_t = super().add_noise(z, eps, timesteps)
        return jnp.concatenate([x_t, beside(grey)], axis=-1)

    def target(
        self,
        x0: Float[Array, "B *place both"],
        eps: Float[Array, "B *place c"],
        timesteps: Int[Array, "B"],
    ) -> Float[Array, "B *place c"]:
        """That of z alone."""
        return super().target(jnp.split(x0, 2, axis=-1)[0], eps, timesteps)


def beside(grey: Float[Array, "*place c"]) -> Float[Array, "*place seen"]:
    """What the UNet sees beside x_t: the mask, and the grey picture's latents."""
    return jnp.concatenate([jnp.ones_like(grey[..., :1]), grey], axis=-1)


def sample_posterior(
    moments: Float[Array, "*B h w Z"], noise: Float[Array, "*B h w c"]
) -> Float[Array, "*B h w both"]:
    """[z, grey]: a sample of the picture's posterior, and the grey one's mean."""
    own, grey = jnp.split(moments, [2 * noise.shape[-1]], axis=-1)
    return jnp.concatenate([vae.sample_posterior(own, noise), grey], axis=-1)


@functools.partial(jax.jit, static_argnames=("autoencoder", "scale", "size"))
def canvas(
    params: Params, *, autoencoder: vae.Vae, scale: LatentScale, size: tuple[int, int]
) -> Float[Array, "h w seen"]:
    """`beside` of a picture of `size` (height, width); `params` are the autoencoder's.

    `autoencoder` is the plain one.
    """
    moments = autoencoder.apply(
        {"params": params}, jnp.zeros((1, *size, 3)), method="encode"
    )
    return beside(scale.to_denoiser(jnp.split(moments, 2, axis=-1)[0]))[0]


def paint_all(family: Family, process: Ddpm) -> Family:
    """A family whose UNet takes nine channels as a text-to-image one."""
    plain = family.autoencoder.module
    return dataclasses.replace(
        family,
        autoencoder=Part(family.autoencoder.name, InpaintingVae(plain.config)),
        picture_params=("encoder", "quant_conv", *family.picture_params),
        process=Inpainting(*process),
        sample_posterior=sample_posterior,
        moment_channels=3 * family.latent_channels,
        canvas=functools.partial(canvas, autoencoder=plain, scale=family.scale),
        pipeline=family.pipeline.replace("Pipeline", "InpaintPipeline"),
    )
