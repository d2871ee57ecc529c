"""Convolutions as XLA's CPU backend computes them fast."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "size size C F"],
    strides: tuple[int, int],
    padding: list[tuple[int, int]],
    **settings: Any,
) -> Float[Array, "B h w F"]:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it.

    On CPUs three kinds become a matrix product: 1 x 1; 3 x 3 with more channels than
    pixels, whose gradient the backend computes at half the speed; and 3 x 3 in
    bfloat16, for which it has fast products alone. The other 3 x 3 ones have a gradient
    of their own.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    def halved(x: Array, kernel: Array) -> Array:
        return product(x, kernel)[:, ::2, ::2]

    size = kernel.shape[:2]
    batch, height, width, channels = x.shape
    low = x.dtype == jnp.bfloat16
    around = {(1, 1): (0, 0), (3, 3): (1, 1)}.get(size)
    if tuple(padding) != (around, around):
        return general(x, kernel)
    if tuple(strides) == (2, 2) and size == (3, 3) and low:
        on_cpu = halved  # four times the work, and still faster
    elif tuple(strides) != (1, 1):
        return general(x, kernel)
    elif size == (1, 1) or low or batch * height * width < channels:
        on_cpu = product
    else:
        on_cpu = convolution
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=general)


def _with_gradient(
    convolve: Callable[[Array, Array], Array],
    gradient: Callable[[Array, Array], Array],
) -> Callable[[Array, Array], Array]:
    """A convolution that keeps height and width, with its own gradient to `x`.

    `gradient` takes that of the result, and the kernel.
    """

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return convolve(x, kernel), (x, kernel)

    def backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
        x, kernel = saved
        _, to_kernel = jax.vjp(lambda kernel: convolve(x, kernel), kernel)
        return gradient(d_out, kernel), *to_kernel(d_out)

    own = jax.custom_vjp(convolve)
    own.defvjp(forward, backward)
    return own


def _convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    around, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layout)


def _convolution_gradient(
    d_out: Float[Array, "B H W F"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W C"]:
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _convolution(d_out, lax.optimization_barrier(turned))


def _product(
    x: Float[Array, "B H W C"], kernel: Float[Array, "size size C F"]
) -> Float[Array, "B H W F"]:
    return _multiply(_patches(x, len(kernel)), _flat(kernel)).astype(x.dtype)


def _product_gradient(
    d_out: Float[Array, "B H W F"], kernel: Float[Array, "size size C F"]
) -> Float[Array, "B H W C"]:
    d_patches = _multiply(d_out, _flat(kernel).T)
    shape = (*d_out.shape[:-1], kernel.shape[2])
    (d_x,) = jax.linear_transpose(
        functools.partial(_patches, size=len(kernel)),
        jax.ShapeDtypeStruct(shape, d_patches.dtype),
    )(d_patches)
    return d_x.astype(d_out.dtype)


def _patches(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B H W K"]:
    """What a kernel sees at each pixel; K is size * size * C."""
    if size == 1:
        return x
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _flat(kernel: Float[Array, "size size C F"]) -> Float[Array, "K F"]:
    return kernel.reshape(-1, kernel.shape[-1])


def _multiply(x: Float[Array, "B H W C"], matrix: Float[Array, "C F"]) -> jax.Array:
    return jnp.einsum("bhwc,cf->bhwf", x, matrix, preferred_element_type=jnp.float32)


# 3 x 3. Left to itself, XLA turns no kernel inside a loop, and convolves by a way that
# takes three times as long.
convolution = _with_gradient(_convolution, _convolution_gradient)
# 1 x 1 or 3 x 3, summed in float32. Left to itself, JAX differentiates products of
# bfloat16 that are summed in float32 as products of float32.
product = _with_gradient(_product, _product_gradient)
