"""Blocks that the UNet, the VAE and the text encoder share.

Arrays are NHWC. A submodule is named so that a parameter's path is its PyTorch key with
list indices joined by an underscore: `resnets_1/conv1/kernel` is
`resnets.1.conv1.weight`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ti_flax.models import attention, convolution, products


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP text encoder."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU, as PyTorch's default; JAX's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "silu": jax.nn.silu}


def dense(
    features: int, name: str, dtype: DTypeLike, use_bias: bool = True
) -> nn.Dense:
    """A linear layer that computes, and keeps its parameters, in `dtype`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dot_general=products.dot_general,
        dtype=dtype,
        param_dtype=dtype,
        name=name,
    )


def conv(
    features: int,
    size: int,
    name: str | None,
    dtype: DTypeLike,
    strides: int = 1,
    padding: tuple[int, int] | None = None,
) -> nn.Conv:
    """A `size` x `size` convolution that keeps height and width unless told otherwise.

    `padding` is (before, after) on both axes.
    """
    around = (size // 2, size // 2) if padding is None else padding
    return nn.Conv(
        features,
        (size, size),
        strides=strides,
        padding=(around, around),
        conv_general_dilated=convolution.convolve,
        dtype=dtype,
        param_dtype=dtype,
        name=name,
    )


def group_norm(groups: int, eps: float, name: str, dtype: DTypeLike) -> nn.GroupNorm:
    """Group norm; its statistics and parameters are float32 whatever the dtype."""
    return nn.GroupNorm(groups, epsilon=eps, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head attention of diffusers' `Attention`; context defaults to the input."""

    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32
    plan: attention.Plan = attention.Plan()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q C"],
        context: Float[Array, "B L D"] | None = None,
    ) -> Float[Array, "B Q C"]:
        context = x if context is None else context
        inner = self.heads * self.head_dim

        def project(name: str, source: Array) -> Array:
            out = dense(inner, name, self.dtype, use_bias=False)(source)
            return out.reshape(*source.shape[:2], self.heads, self.head_dim)

        out = attention.attend(
            project("to_q", x),
            project("to_k", context),
            project("to_v", context),
            self.plan,
        )
        out = out.reshape(*x.shape[:2], inner)
        return dense(x.shape[-1], "to_out_0", self.dtype)(out)


class ResnetBlock(nn.Module):
    """Group norm, SiLU and convolution, twice, plus the input: `ResnetBlock2D`."""

    features: int
    groups: int
    eps: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time_embedding: Float[Array, "B E"] | None = None,
    ) -> Float[Array, "B H W out"]:
        features, dtype = self.features, self.dtype

        h = nn.silu(group_norm(self.groups, self.eps, "norm1", dtype)(x))
        h = conv(features, 3, "conv1", dtype)(h)
        if time_embedding is not None:
            shift = dense(features, "time_emb_proj", dtype)(nn.silu(time_embedding))
            h = h + shift[:, None, None, :]
        h = nn.silu(group_norm(self.groups, self.eps, "norm2", dtype)(h))
        h = conv(features, 3, "conv2", dtype)(h)
        if x.shape[-1] != features:
            x = conv(features, 1, "conv_shortcut", dtype)(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width by a strided convolution.

    The UNet pads (1, 1) around, the VAE's encoder (0, 1): only below and to the right.
    """

    padding: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return conv(
            x.shape[-1], 3, "conv", self.dtype, strides=2, padding=self.padding
        )(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest neighbours, then a convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], size: tuple[int, int] | None = None
    ) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        # Broadcast and reshape: cheaper to differentiate than a gather.
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        x = x.reshape(b, 2 * h, 2 * w, c)
        if size is not None:
            # An odd skip connection is one row or column smaller than the double.
            x = x[:, : size[0], : size[1]]
        return conv(c, 3, "conv", self.dtype)(x)
