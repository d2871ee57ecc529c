"""Convolutions as XLA's CPU backend computes them fast."""

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

    On CPUs three kinds become matrix products: 1 x 1; 3 x 3 with more channels than
    pixels, whose gradient the backend computes at half the speed; and 3 x 3 in
    bfloat16, for which it has fast products alone. The other 3 x 3 ones have a gradient
    of their own.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    def halved(x: Array, kernel: Array) -> Array:
        return products(x, kernel)[:, ::2, ::2]

    size = kernel.shape[:2]
    batch, height, width, channels = x.shape
    low = x.dtype == jnp.bfloat16
    around = {(1, 1): (0, 0), (3, 3): (1, 1)}.get(size)
    if tuple(padding) != (around, around):
        return general(x, kernel)
    if tuple(strides) == (2, 2) and size == (3, 3) and low:
        on_cpu = halved  # four times the work, still in half the time
    elif tuple(strides) != (1, 1):
        return general(x, kernel)
    elif size == (1, 1):
        on_cpu = product
    elif batch * height * width < channels:
        on_cpu = deep_product
    elif low:
        on_cpu = products
    else:
        on_cpu = convolution
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=general)


def _with_gradient(
    convolve: Callable[[Array, Array], Array],
    gradient: Callable[[Array, Array], Array],
) -> Callable[[Array, Array], Array]:
    """A convolution that keeps height and width, with its own gradient to `x`.

    `gradient` takes that of the result, and the kernel. XLA's would be in float32 where
    products of bfloat16 are summed in float32.
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


def _turned(kernel: Float[Array, "h w C F"]) -> Float[Array, "h w F C"]:
    """The kernel whose convolution is the gradient of `kernel`'s."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _one_product(
    x: Float[Array, "B H W C"], kernel: Float[Array, "1 1 C F"]
) -> Float[Array, "B H W F"]:
    return _product(x, kernel[0, 0]).astype(x.dtype)


def _nine_products(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    by_place = kernel.reshape(9, *kernel.shape[2:])
    return sum(map(_product, _shifted(x), by_place)).astype(x.dtype)


def _shifted(x: Float[Array, "B H W C"]) -> list[Float[Array, "B H W C"]]:
    """What each place of a 3 x 3 kernel sees."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]


def _deep_product(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    deep = kernel.reshape(-1, kernel.shape[-1])
    return _product(_patches(x), deep).astype(x.dtype)


def _deep_gradient(
    d_out: Float[Array, "B H W F"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W C"]:
    # Not with the turned kernel, which would have to be written to memory.
    deep = kernel.reshape(-1, kernel.shape[-1])
    d_patches = _product(d_out, deep.T)
    shape = (*d_out.shape[:-1], kernel.shape[2])
    x = jax.ShapeDtypeStruct(shape, d_patches.dtype)
    (d_x,) = jax.linear_transpose(_patches, x)(d_patches)
    return d_x.astype(d_out.dtype)


def _patches(x: Float[Array, "B H W C"]) -> Float[Array, "B H W 9*C"]:
    return jnp.concatenate(_shifted(x), axis=-1)


def _one_convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    around, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layout)


def _product(x: Float[Array, "B H W C"], kernel: Float[Array, "C F"]) -> jax.Array:
    return jnp.einsum("bhwc,cf->bhwf", x, kernel, preferred_element_type=jnp.float32)


# 1 x 1, summed in float32.
product = _with_gradient(_one_product, lambda d, k: _one_product(d, _turned(k)))
# 3 x 3, summed in float32. Where pixels are many, nine products move less memory than
# one of nine times the depth; where they are few, cutting the kernel in nine does.
products = _with_gradient(_nine_products, lambda d, k: _nine_products(d, _turned(k)))
deep_product = _with_gradient(_deep_product, _deep_gradient)
# 3 x 3. Left to itself, XLA turns no kernel inside a loop, and convolves by a way that
# takes three times as long.
convolution = _with_gradient(
    _one_convolution,
    lambda d, k: _one_convolution(d, lax.optimization_barrier(_turned(k))),
)
