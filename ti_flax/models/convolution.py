"""Convolutions as XLA's CPU backend computes them fast."""

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
    bfloat16, for which it has products alone. The other 3 x 3 ones have a gradient of
    their own.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    size = kernel.shape[:2]
    batch, height, width, channels = x.shape
    around = {(1, 1): (0, 0), (3, 3): (1, 1)}.get(size)
    if tuple(strides) != (1, 1) or tuple(padding) != (around, around):
        return general(x, kernel)
    if size == (1, 1):
        on_cpu = product
    elif x.dtype == jnp.bfloat16 or batch * height * width < channels:
        on_cpu = products
    else:
        on_cpu = convolution
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=general)


def product(
    x: Float[Array, "B H W C"], kernel: Float[Array, "1 1 C F"]
) -> Float[Array, "B H W F"]:
    """A 1 x 1 convolution, summed in float32."""
    return _product(x, kernel[0, 0]).astype(x.dtype)


@jax.custom_vjp
def convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    """A 3 x 3 convolution that keeps height and width.

    Its gradient to `x` is such a convolution too, with a kernel that has been turned
    in memory. Left to itself, XLA turns none inside a loop, and convolves by a way that
    takes three times as long.
    """
    return _convolution(x, kernel)


def _convolution(x: Array, kernel: Array) -> Array:
    around, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layout)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = saved
    turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    _, to_kernel = jax.vjp(lambda kernel: _convolution(x, kernel), kernel)
    return _convolution(d_out, turned), *to_kernel(d_out)


convolution.defvjp(_forward, _backward)


def products(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C F"]
) -> Float[Array, "B H W F"]:
    """A 3 x 3 convolution that keeps height and width, summed in float32."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    if x.dtype == jnp.bfloat16:
        # Nine products move less memory than one of nine times the depth.
        by_place = kernel.reshape(9, *kernel.shape[2:])
        return sum(map(_product, shifted, by_place)).astype(x.dtype)
    deep = kernel.reshape(-1, kernel.shape[-1])
    return _product(jnp.concatenate(shifted, axis=-1), deep)


def _product(x: Float[Array, "B H W C"], kernel: Float[Array, "C F"]) -> jax.Array:
    return jnp.einsum("bhwc,cf->bhwf", x, kernel, preferred_element_type=jnp.float32)
