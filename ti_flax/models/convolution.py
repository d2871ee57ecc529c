"""Convolutions that XLA's CPU backend computes faster as matrix products."""

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

    On CPUs two kinds of 3 x 3 convolution become products: those with more channels
    than pixels, whose gradient the backend computes at half the speed, and all in
    bfloat16, for which it has products alone.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    batch, height, width, channels = x.shape
    as_products = (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and tuple(padding) == ((1, 1), (1, 1))
        and (x.dtype == jnp.bfloat16 or batch * height * width < channels)
    )
    if not as_products:
        return general(x, kernel)
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=products, default=general)


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
