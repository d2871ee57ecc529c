"""Convolutions as XLA's CPU backend computes them fast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ti_flax.models import products


def convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "size size C out"],
    strides: tuple[int, int],
    padding: list[tuple[int, int]],
    **settings: Any,
) -> Float[Array, "B h w out"]:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it.

    On CPUs four kinds become a matrix product: 1 x 1; strided ones and those with more
    channels than pixels, whose gradients the backend computes slowly; and all in
    bfloat16, for which it has fast products alone. Others have their own gradient.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    size, stride = kernel.shape[0], strides[0]
    batch, height, width, channels = x.shape
    around = (size // 2, size // 2)
    if (
        kernel.shape[:2] not in ((1, 1), (3, 3))
        or strides[0] != strides[1]
        or tuple(padding) != (around, around)
    ):
        return general(x, kernel)
    if (
        x.dtype == jnp.bfloat16
        or size == 1
        or stride > 1
        or batch * height * width < channels
    ):
        on_cpu = functools.partial(product, stride=stride)
    else:
        on_cpu = convolution
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=general)


@jax.custom_vjp
def convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C out"]
) -> Float[Array, "B H W out"]:
    """A 3 x 3 convolution that keeps height and width.

    Its gradient to `x` is such a convolution too, with a kernel that has been turned
    in memory. Left to itself, XLA turns none inside a loop, and convolves by a way that
    takes three times as long.
    """
    return _convolution(x, kernel)


def _convolution(x: Array, kernel: Array) -> Array:
    around, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layout)


def _convolution_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel), (x, kernel)


def _convolution_backward(
    saved: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    _, to_kernel = jax.vjp(lambda kernel: _convolution(x, kernel), kernel)
    return _convolution(d_out, turned), *to_kernel(d_out)


convolution.defvjp(_convolution_forward, _convolution_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "B H W C"], kernel: Float[Array, "size size C out"], stride: int
) -> Float[Array, "B h w out"]:
    """A 1 x 1 or 3 x 3 convolution as one matrix product, summed in float32.

    Differentiated as `products.product` is.
    """
    patches = _patches(x, len(kernel), stride)
    return products.multiply(patches, _flat(kernel)).astype(x.dtype)


def _product_forward(
    x: Array, kernel: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, stride), (x, kernel)


def _product_backward(
    stride: int, saved: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    cut = functools.partial(_patches, size=len(kernel), stride=stride)
    wide = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    d_patches = products.multiply_turned(d_out, _flat(kernel))
    (d_x,) = jax.linear_transpose(cut, wide)(d_patches)
    d_kernel = products.sum_over_rows(cut(x), d_out).reshape(kernel.shape)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def _patches(
    x: Float[Array, "B H W C"], size: int, stride: int
) -> Float[Array, "B h w patch"]:
    """What a kernel sees where it is put; patch is size * size * C."""
    _, height, width, _ = x.shape
    edge = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
    places = [(i, j) for i in range(size) for j in range(size)]
    shifted = [
        padded[:, i : i + height : stride, j : j + width : stride] for i, j in places
    ]
    return jnp.concatenate(shifted, axis=-1)


def _flat(kernel: Float[Array, "size size C out"]) -> Float[Array, "patch out"]:
    return kernel.reshape(-1, kernel.shape[-1])
