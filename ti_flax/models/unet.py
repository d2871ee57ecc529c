"""UNet2DConditionModel of Stable Diffusion 1.x and 2.x (Rombach et al. 2022)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Real

from ti_flax.models import attention, layers
from ti_flax.runtime.errors import UserError

# Settings that Stable Diffusion 1.x and 2.x leave at one value. Another value means
# another family (SDXL, inpainting with masks, class-conditional...), not a variation.
_FIXED = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


class UNetConfig(NamedTuple):
    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    heads: tuple[int, ...]
    layers_per_block: int
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float
    use_linear_projection: bool
    flip_sin_to_cos: bool
    freq_shift: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Reads `unet/config.json`.

        Raises `UserError` for a setting outside Stable Diffusion 1.x and 2.x.
        """
        for key, value in _FIXED.items():
            if config.get(key, value) != value:
                raise UserError(
                    f"unet: {key} is {config[key]!r}, supported is {value!r}; use a "
                    "Stable Diffusion 1.x or 2.x model"
                )
        widths = tuple(config["block_out_channels"])
        # attention_head_dim is the NUMBER of heads in these files (diffusers#2011).
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        if isinstance(heads, int):
            heads = (heads,) * len(widths)
        down, up = config["down_block_types"], config["up_block_types"]
        if not len(widths) == len(heads) == len(down) == len(up):
            raise UserError(
                "unet: expected as many down_block_types, up_block_types and heads as "
                f"block_out_channels, found {len(down)}, {len(up)} and {len(heads)} "
                f"for {len(widths)}; download the model again"
            )
        return cls(
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            block_out_channels=widths,
            down_attention=_attention(down, _DOWN),
            up_attention=_attention(up, _UP),
            heads=tuple(heads),
            layers_per_block=config.get("layers_per_block", 2),
            cross_attention_dim=config["cross_attention_dim"],
            norm_num_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            use_linear_projection=config.get("use_linear_projection", False),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
        )


def _attention(types: list[str], known: Mapping[str, bool]) -> tuple[bool, ...]:
    for block in types:
        if block not in known:
            raise UserError(
                f"unet: unknown block {block!r}; expected {' or '.join(known)}"
            )
    return tuple(known[block] for block in types)


def timestep_embedding(
    timesteps: Real[Array, "B"], features: int, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "B features"]:
    """Sinusoids of Vaswani et al. 2017, section 3.5, periods up to 10,000, float32."""
    half = features // 2
    exponents = np.arange(half, dtype=np.float32) / (half - freq_shift)
    frequencies = np.exp(-np.log(np.float32(10_000.0)) * exponents)
    angles = timesteps[:, None].astype(jnp.float32) * frequencies[None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


class TimestepMlp(nn.Module):
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B C"]) -> Float[Array, "B E"]:
        x = layers.dense(self.features, "linear_1", self.dtype)(x)
        return layers.dense(self.features, "linear_2", self.dtype)(nn.silu(x))


class GeGlu(nn.Module):
    """A linear layer gated by the exact GELU of another (Shazeer 2020)."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Q C"]) -> Float[Array, "B Q out"]:
        both = layers.dense(2 * self.features, "proj", self.dtype)(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return value * layers.gelu(gate)


class FeedForward(nn.Module):
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        width = x.shape[-1]
        h = GeGlu(4 * width, self.dtype, name="net_0")(x)
        return layers.dense(width, "net_2", self.dtype)(h)


class TransformerBlock(nn.Module):
    heads: int
    dtype: DTypeLike
    plan: attention.Plan

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B Q C"]:
        head_dim = x.shape[-1] // self.heads

        def norm(name: str) -> Array:
            return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)(x)

        def attention(name: str) -> layers.Attention:
            return layers.Attention(
                self.heads, head_dim, self.dtype, self.plan, name=name
            )

        x = x + attention("attn1")(norm("norm1"))
        x = x + attention("attn2")(norm("norm2"), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3"))


class Transformer(nn.Module):
    """Pixels as tokens; diffusers' `Transformer2DModel` with one block."""

    heads: int
    groups: int
    linear: bool
    dtype: DTypeLike
    plan: attention.Plan

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B h w C"]:
        b, h, w, c = x.shape

        def project(name: str, y: Array) -> Array:
            if self.linear:
                return layers.dense(c, name, self.dtype)(y)
            return layers.conv(c, 1, name, self.dtype)(y)

        y = layers.group_norm(self.groups, 1e-6, "norm", self.dtype)(x)
        y = project("proj_in", y).reshape(b, h * w, c)
        y = TransformerBlock(
            self.heads, self.dtype, self.plan, name="transformer_blocks_0"
        )(y, context)
        return x + project("proj_out", y.reshape(b, h, w, c))


class UNet(nn.Module):
    """Noisy latents, timesteps and context to the model's prediction.

    Training draws whole timesteps; samplers may ask between them.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    plan: attention.Plan = attention.Plan()
    # Compute what is inside a residual or transformer block again in the backward pass.
    remat: bool = False

    def example_inputs(self) -> tuple[Array, Array, Array]:
        """Arguments of `init`: the smallest latents that pass every level."""
        config = self.config
        side = 2 ** len(config.block_out_channels)
        return (
            jnp.zeros((1, side, side, config.in_channels)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, 1, config.cross_attention_dim)),
        )

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B h w C"],
        timesteps: Real[Array, "B"],
        context: Float[Array, "B L D"],
    ) -> Float[Array, "B h w C"]:
        config, dtype = self.config, self.dtype
        context, embedding = context.astype(dtype), self._embed(timesteps)
        x = layers.conv(config.block_out_channels[0], 3, "conv_in", dtype)(
            x_t.astype(dtype)
        )
        skips = [x]
        last = len(config.block_out_channels) - 1
        for i, width in enumerate(config.block_out_channels):
            x, outputs = DownBlock(
                config,
                width,
                config.heads[i],
                attention=config.down_attention[i],
                downsample=i < last,
                dtype=dtype,
                plan=self.plan,
                remat=self.remat,
                name=f"down_blocks_{i}",
            )(x, embedding, context)
            skips += outputs
        x = MidBlock(
            config,
            config.block_out_channels[-1],
            config.heads[-1],
            dtype=dtype,
            plan=self.plan,
            remat=self.remat,
            name="mid_block",
        )(x, embedding, context)
        for i, width in enumerate(reversed(config.block_out_channels)):
            depth = config.layers_per_block + 1
            skips, own = skips[:-depth], skips[-depth:]
            x = UpBlock(
                config,
                width,
                config.heads[last - i],
                attention=config.up_attention[i],
                # The next skip has the size to return to: half of an odd one is lossy.
                upsample_to=skips[-1].shape[1:3] if i < last else None,
                dtype=dtype,
                plan=self.plan,
                remat=self.remat,
                name=f"up_blocks_{i}",
            )(x, own, embedding, context)
        x = layers.group_norm(
            config.norm_num_groups, config.norm_eps, "conv_norm_out", dtype
        )(x)
        return layers.conv(config.out_channels, 3, "conv_out", dtype)(nn.silu(x))

    def _embed(self, timesteps: Real[Array, "B"]) -> Float[Array, "B E"]:
        config, width = self.config, self.config.block_out_channels[0]
        waves = timestep_embedding(
            timesteps, width, config.flip_sin_to_cos, config.freq_shift
        )
        mlp = TimestepMlp(4 * width, self.dtype, name="time_embedding")
        return mlp(waves.astype(self.dtype))


class Block(nn.Module):
    """What down, middle and up blocks have in common."""

    config: UNetConfig
    width: int
    heads: int
    dtype: DTypeLike
    plan: attention.Plan
    remat: bool

    def resnet(self, i: int) -> layers.ResnetBlock:
        return self._kind(layers.ResnetBlock)(
            self.width,
            self.config.norm_num_groups,
            self.config.norm_eps,
            dtype=self.dtype,
            name=f"resnets_{i}",
        )

    def transformer(self, i: int) -> Transformer:
        return self._kind(Transformer)(
            self.heads,
            self.config.norm_num_groups,
            self.config.use_linear_projection,
            self.dtype,
            self.plan,
            name=f"attentions_{i}",
        )

    def _kind(self, block: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(block) if self.remat else block


class DownBlock(Block):
    attention: bool = True
    downsample: bool = True

    @nn.compact
    def __call__(
        self, x: Array, embedding: Array, context: Array
    ) -> tuple[Array, list[Array]]:
        outputs = []
        for i in range(self.config.layers_per_block):
            x = self.resnet(i)(x, embedding)
            if self.attention:
                x = self.transformer(i)(x, context)
            outputs.append(x)
        if self.downsample:
            x = layers.Downsample((1, 1), self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        return x, outputs


class MidBlock(Block):
    @nn.compact
    def __call__(self, x: Array, embedding: Array, context: Array) -> Array:
        x = self.resnet(0)(x, embedding)
        x = self.transformer(0)(x, context)
        return self.resnet(1)(x, embedding)


class UpBlock(Block):
    attention: bool = True
    upsample_to: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array], embedding: Array, context: Array
    ) -> Array:
        """Joins one skip connection a layer, the last of them first."""
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = self.resnet(i)(x, embedding)
            if self.attention:
                x = self.transformer(i)(x, context)
        if self.upsample_to is not None:
            x = layers.Upsample(self.dtype, name="upsamplers_0")(x, self.upsample_to)
        return x
