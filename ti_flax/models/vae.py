"""AutoencoderKL: pictures to latents and back (Rombach et al. 2022, section 3.1)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ti_flax.models import attention, layers
from ti_flax.runtime.errors import UserError
from ti_flax.runtime.json_settings import Settings

_EPS = 1e-6
_FIXED = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_INSTEAD = "use the AutoencoderKL of a Stable Diffusion 1.x or 2.x model"


class VaeConfig(NamedTuple):
    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    scaling_factor: float
    # Of each channel of latents, where a model has them.
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "VaeConfig":
        """Reads `vae/config.json`.

        Raises `UserError` for a setting outside Stable Diffusion 1.x and 2.x.
        """
        settings = Settings("vae", config, _INSTEAD)
        settings.of_class("AutoencoderKL")
        settings.fixed(_FIXED)
        widths = settings.integers("block_out_channels", 1, 8192)
        channels = settings.integer("latent_channels", 1, 64, 4)
        mean = settings.one_each("latents_mean", -1e4, 1e4, channels)
        std = settings.one_each("latents_std", 1e-4, 1e4, channels)
        if (mean is None) != (std is None):
            raise UserError(
                "vae: expected latents_mean and latents_std, found one of them; use "
                "the vae/config.json that came with the weights"
            )
        settings.choices("down_block_types", ("DownEncoderBlock2D",), len(widths))
        settings.choices("up_block_types", ("UpDecoderBlock2D",), len(widths))
        read = cls(
            # Pictures are red, green and blue.
            in_channels=settings.integer("in_channels", 3, 3, 3),
            out_channels=settings.integer("out_channels", 3, 3, 3),
            block_out_channels=widths,
            layers_per_block=settings.integer("layers_per_block", 1, 16, 1),
            latent_channels=channels,
            norm_num_groups=settings.integer("norm_num_groups", 1, 1024, 32),
            # Files written before diffusers 0.10 lack it; they are all SD 1.x.
            scaling_factor=settings.number("scaling_factor", 1e-6, 1e6, 0.18215),
            latents_mean=mean,
            latents_std=std,
        )
        settings.divides("norm_num_groups", read.norm_num_groups, widths)
        return read

    @property
    def downscale(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class SpatialAttention(nn.Module):
    """One-head self-attention over all positions, plus the input."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        b, h, w, c = x.shape
        y = layers.group_norm(self.groups, _EPS, "group_norm", self.dtype)(x)
        tokens = y.reshape(b, h * w, c)

        def project(name: str) -> Array:
            return layers.dense(c, name, self.dtype)(tokens)[:, :, None]

        out = attention.attend(project("to_q"), project("to_k"), project("to_v"))[
            :, :, 0
        ]
        out = layers.dense(c, "to_out_0", self.dtype)(out)
        return x + out.reshape(x.shape)


class MidBlock(nn.Module):
    width: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        def resnet(i: int) -> layers.ResnetBlock:
            return layers.ResnetBlock(
                self.width, self.groups, _EPS, self.dtype, name=f"resnets_{i}"
            )

        x = resnet(0)(x)
        x = SpatialAttention(self.groups, self.dtype, name="attentions_0")(x)
        return resnet(1)(x)


class Level(nn.Module):
    """Residual blocks of one resolution."""

    width: int
    depth: int
    groups: int
    dtype: DTypeLike

    def resnets(self, x: Array) -> Array:
        for i in range(self.depth):
            x = layers.ResnetBlock(
                self.width, self.groups, _EPS, self.dtype, name=f"resnets_{i}"
            )(x)
        return x


class DownLevel(Level):
    downsample: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w out"]:
        x = self.resnets(x)
        if self.downsample:
            x = layers.Downsample((0, 1), self.dtype, name="downsamplers_0")(x)
        return x


class UpLevel(Level):
    upsample: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W out"]:
        x = self.resnets(x)
        if self.upsample:
            x = layers.Upsample(self.dtype, name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        config, dtype = self.config, self.dtype
        groups, widths = config.norm_num_groups, config.block_out_channels
        x = layers.conv(widths[0], 3, "conv_in", dtype)(x)
        for i, width in enumerate(widths):
            x = DownLevel(
                width,
                config.layers_per_block,
                groups,
                dtype,
                downsample=i < len(widths) - 1,
                name=f"down_blocks_{i}",
            )(x)
        x = MidBlock(widths[-1], groups, dtype, name="mid_block")(x)
        x = layers.group_norm(groups, _EPS, "conv_norm_out", dtype)(x)
        return layers.conv(2 * config.latent_channels, 3, "conv_out", dtype)(nn.silu(x))


class Decoder(nn.Module):
    config: VaeConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        config, dtype = self.config, self.dtype
        groups, widths = config.norm_num_groups, config.block_out_channels[::-1]
        x = layers.conv(widths[0], 3, "conv_in", dtype)(z)
        x = MidBlock(widths[0], groups, dtype, name="mid_block")(x)
        for i, width in enumerate(widths):
            x = UpLevel(
                width,
                config.layers_per_block + 1,
                groups,
                dtype,
                upsample=i < len(widths) - 1,
                name=f"up_blocks_{i}",
            )(x)
        x = layers.group_norm(groups, _EPS, "conv_norm_out", dtype)(x)
        return layers.conv(config.out_channels, 3, "conv_out", dtype)(nn.silu(x))


class Vae(nn.Module):
    """The autoencoder. Latents here are unscaled; the UNet sees them times
    `scaling_factor`."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        z = self.config.latent_channels

        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = layers.conv(2 * z, 1, None, self.dtype)
        self.post_quant_conv = layers.conv(z, 1, None, self.dtype)

    def example_inputs(self) -> tuple[Array]:
        """Arguments of `init`: the smallest picture that passes every level."""
        side = 2 * self.config.downscale
        return (jnp.zeros((1, side, side, self.config.in_channels)),)

    def encode(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        """Pixels in [-1, 1] to moments: means and log-variances of the latents, stacked
        on the last axis."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Unscaled latents to pixels, about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Decodes the posterior mean; exists so that `init` makes every parameter."""
        return self.decode(self.encode(pixels)[..., : self.config.latent_channels])


def sample_posterior(
    moments: Float[Array, "*B h w Z"], noise: Float[Array, "*B h w c"]
) -> Float[Array, "*B h w c"]:
    """mean + std * noise (Kingma & Welling 2014), log-variance clipped to [-30, 20]
    as in the VAE's training."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * noise
