"""Matrix products as XLA's CPU backend computes them fast."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def dot_general(
    x: Float[Array, "*rows C"],
    kernel: Float[Array, "C out"],
    dimension_numbers: lax.DotDimensionNumbers,
    **settings: Any,
) -> Float[Array, "*rows out"]:
    """`lax.dot_general` as `flax.linen.Dense` calls it.

    On CPUs a product of bfloat16 is summed in float32 and then rounded: the backend
    multiplies it as such, both ways. The plain one, up to JAX 0.10, takes twice as
    long, and its gradient wants the kernel in float32.
    """

    def general(x: Array, kernel: Array) -> Array:
        return lax.dot_general(x, kernel, dimension_numbers, **settings)

    if x.dtype != jnp.bfloat16:
        return general(x, kernel)
    # Decided when the program is lowered: it may be for a TPU that is not here.
    return lax.platform_dependent(x, kernel, cpu=product, default=general)


@jax.custom_vjp
def product(
    x: Float[Array, "*rows C"], kernel: Float[Array, "C out"]
) -> Float[Array, "*rows out"]:
    """A product summed in float32, in the dtype of `x`.

    Left to itself, JAX differentiates products of bfloat16 that are summed in float32
    as products of float32.
    """
    return multiply(x, kernel).astype(x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, kernel = saved
    d_x = multiply_turned(d_out, kernel).astype(x.dtype)
    return d_x, sum_over_rows(x, d_out).astype(kernel.dtype)


product.defvjp(_forward, _backward)


def multiply(
    x: Float[Array, "*rows C"], matrix: Float[Array, "C out"]
) -> Float[Array, "*rows out"]:
    """The product in float32."""
    return jnp.einsum("...c,cf->...f", x, matrix, preferred_element_type=jnp.float32)


def multiply_turned(
    x: Float[Array, "*rows out"], matrix: Float[Array, "C out"]
) -> Float[Array, "*rows C"]:
    """The product with the matrix turned, in float32.

    Of bfloat16 XLA turns a second factor in a copy, and keeps that for all steps of a
    loop; as the first factor a matrix is read as it lies, and the others are turned.
    What is smaller is.
    """
    rows, copied = math.prod(x.shape[:-1]), matrix.dtype == jnp.bfloat16
    if not copied or rows * sum(matrix.shape) >= matrix.size:
        return multiply(x, matrix.T)
    contracted = ((1,), (x.ndim - 1,))
    turned = lax.dot_general(
        matrix, x, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
    return jnp.moveaxis(turned, 0, -1)


def sum_over_rows(
    x: Float[Array, "*rows C"], y: Float[Array, "*rows out"]
) -> Float[Array, "C out"]:
    """The sum of outer products over all rows, in float32."""
    rows = tuple(range(x.ndim - 1))
    return lax.dot_general(
        x, y, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
    )
