"""UNet2DConditionModel of Stable Diffusion and SDXL (Rombach et al. 2022)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Real

from ti_flax.models import attention, layers
from ti_flax.models.unet_config import UNetConfig


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
    def __call__(
        self, x: Float[Array, "B C"], condition: Float[Array, "B P"] | None = None
    ) -> Float[Array, "B E"]:
        if condition is not None:
            project = layers.dense(x.shape[-1], "cond_proj", self.dtype, use_bias=False)
            x = x + project(condition)
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
    """Pixels as tokens; diffusers' `Transformer2DModel` with `depth` blocks."""

    heads: int
    depth: int
    groups: int
    linear: bool
    dtype: DTypeLike
    plan: attention.Plan
    # Compute each block again in the backward pass.
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B h w C"]:
        b, h, w, c = x.shape
        block = nn.remat(TransformerBlock) if self.remat else TransformerBlock

        def project(name: str, y: Array) -> Array:
            if self.linear:
                return layers.dense(c, name, self.dtype)(y)
            return layers.conv(c, 1, name, self.dtype)(y)

        y = layers.group_norm(self.groups, 1e-6, "norm", self.dtype)(x)
        y = project("proj_in", y).reshape(b, h * w, c)
        for i in range(self.depth):
            name = f"transformer_blocks_{i}"
            y = block(self.heads, self.dtype, self.plan, name=name)(y, context)
        return x + project("proj_out", y.reshape(b, h, w, c))


class UNet(nn.Module):
    """Noisy latents, timesteps and context to the model's prediction.

    Training draws whole timesteps; samplers may ask between them. SDXL is also told
    the pooled text and the six sizes of a picture (Podell et al. 2023, section 2.2), a
    model distilled for it the guidance scale (Meng et al. 2023, section 3.1).
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    plan: attention.Plan = attention.Plan()
    # Compute what is inside a residual or transformer block again in the backward pass.
    remat: bool = False

    def example_inputs(self) -> tuple[Array | None, ...]:
        """Arguments of `init`: the smallest latents that pass every level."""
        config = self.config
        side = 2 ** len(config.block_out_channels)
        inputs = (
            jnp.zeros((1, side, side, config.in_channels)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, 1, config.cross_attention_dim)),
        )
        pooled = sizes = guidance = None
        if config.size_width is not None:
            pooled = jnp.zeros((1, config.added_width - 6 * config.size_width))
            sizes = jnp.zeros((1, 6), jnp.int32)
        if config.guidance_width is not None:
            guidance = jnp.zeros(1)
        return *inputs, pooled, sizes, guidance

    @property
    def kept_channels(self) -> float:
        """Channels of what the blocks give, a latent pixel: 5,760 in SD 1.5."""
        config = self.config
        total = 0.0
        for i, width in enumerate(config.block_out_channels):
            down, up = config.down_depths[i], config.up_depths[-1 - i]
            blocks = len(down) + sum(down) + len(up) + sum(up)
            total += width * blocks / 4**i
        if config.mid_depth is not None:
            total += (2 + config.mid_depth) * width / 4**i
        return total

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B h w C"],
        timesteps: Real[Array, "B"],
        context: Float[Array, "B L D"],
        pooled: Float[Array, "B P"] | None = None,
        sizes: Int[Array, "B 6"] | None = None,
        guidance: Float[Array, "B"] | None = None,
    ) -> Float[Array, "B h w out"]:
        config, dtype = self.config, self.dtype
        context, embedding = context.astype(dtype), self._embed(timesteps, guidance)
        if pooled is not None and sizes is not None:
            embedding += self._embed_picture(pooled, sizes)
        conv_in = layers.conv(config.block_out_channels[0], 3, "conv_in", dtype)
        x = conv_in(x_t.astype(dtype))
        skips = [x]
        last = len(config.block_out_channels) - 1
        for i, width in enumerate(config.block_out_channels):
            x, outputs = DownBlock(
                config,
                width,
                config.heads[i],
                depths=config.down_depths[i],
                downsample=i < last,
                dtype=dtype,
                plan=self.plan,
                remat=self.remat,
                name=f"down_blocks_{i}",
            )(x, embedding, context)
            skips += outputs
        if config.mid_depth is not None:
            x = MidBlock(
                config,
                config.block_out_channels[-1],
                config.heads[-1],
                depths=(config.mid_depth,),
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
                depths=config.up_depths[i],
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

    def _embed(
        self, timesteps: Real[Array, "B"], guidance: Float[Array, "B"] | None
    ) -> Float[Array, "B E"]:
        config, width = self.config, self.config.block_out_channels[0]
        waves = timestep_embedding(
            timesteps, width, config.flip_sin_to_cos, config.freq_shift
        )
        mlp = TimestepMlp(4 * width, self.dtype, name="time_embedding")
        if config.guidance_width is None:
            return mlp(waves.astype(self.dtype))
        # As diffusers: w = scale - 1, in thousandths.
        told = timestep_embedding(
            1000 * (guidance - 1),
            config.guidance_width,
            flip_sin_to_cos=False,
            freq_shift=1,
        )
        return mlp(waves.astype(self.dtype), told.astype(self.dtype))

    def _embed_picture(
        self, pooled: Float[Array, "B P"], sizes: Int[Array, "B 6"]
    ) -> Float[Array, "B E"]:
        config = self.config
        # Above 256, bfloat16 has no odd numbers: sinusoids are float32.
        waves = timestep_embedding(
            sizes.reshape(-1),
            config.size_width,
            config.flip_sin_to_cos,
            config.freq_shift,
        ).reshape(len(sizes), -1)
        both = jnp.concatenate([pooled, waves], axis=-1).astype(self.dtype)
        width = config.block_out_channels[0]
        return TimestepMlp(4 * width, self.dtype, name="add_embedding")(both)


class Block(nn.Module):
    """What down, middle and up blocks have in common."""

    config: UNetConfig
    width: int
    heads: int
    # Transformer blocks after each residual block; 0: no attention.
    depths: tuple[int, ...]
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

    def attend(self, i: int, x: Array, context: Array) -> Array:
        """`x` after the transformer that follows residual block `i`, if one does."""
        depth = self.depths[i]
        if depth == 0:
            return x
        # A single block is computed again with what surrounds it, of many each alone.
        kind = self._kind(Transformer) if depth == 1 else Transformer
        transformer = kind(
            self.heads,
            depth,
            self.config.norm_num_groups,
            self.config.use_linear_projection,
            self.dtype,
            self.plan,
            remat=self.remat and depth > 1,
            name=f"attentions_{i}",
        )
        return transformer(x, context)

    def _kind(self, block: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(block) if self.remat else block


class DownBlock(Block):
    downsample: bool = True

    @nn.compact
    def __call__(
        self, x: Array, embedding: Array, context: Array
    ) -> tuple[Array, list[Array]]:
        outputs = []
        for i in range(self.config.layers_per_block):
            x = self.attend(i, self.resnet(i)(x, embedding), context)
            outputs.append(x)
        if self.downsample:
            x = layers.Downsample((1, 1), self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        return x, outputs


class MidBlock(Block):
    @nn.compact
    def __call__(self, x: Array, embedding: Array, context: Array) -> Array:
        x = self.resnet(0)(x, embedding)
        if self.depths == (0,):
            return x
        return self.resnet(1)(self.attend(0, x, context), embedding)


class UpBlock(Block):
    upsample_to: tuple[int, int] | None = None

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array], embedding: Array, context: Array
    ) -> Array:
        """Joins one skip connection a layer, the last of them first."""
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = self.attend(i, self.resnet(i)(x, embedding), context)
        if self.upsample_to is not None:
            x = layers.Upsample(self.dtype, name="upsamplers_0")(x, self.upsample_to)
        return x
