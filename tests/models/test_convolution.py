"""Convolutions as matrix products are convolutions, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ti_flax.models import convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")


def with_gradient(function, x, kernel):
    out, pull_back = jax.vjp(jax.jit(function), x, kernel)
    # Exact in both dtypes.
    d_out = jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(jnp.bfloat16)
    back = pull_back(d_out.astype(out.dtype))
    return [np.asarray(array, np.float32) for array in (out, *back)]


def around(kernel):
    return [(len(kernel) // 2, len(kernel) // 2)] * 2


def theirs(x, kernel, stride=1):
    exact = (jnp.asarray(array, jnp.float32) for array in (x, kernel))
    return lax.conv_general_dilated(
        *exact, (stride, stride), around(kernel), dimension_numbers=LAYOUT
    )


def ours(x, kernel, stride=1):
    return convolution.convolve(
        x, kernel, (stride, stride), around(kernel), dimension_numbers=LAYOUT
    )


def arrays(batch, height, width, channels, features, dtype, size=3):
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, height, width, channels))
    kernel = random.normal(size=(size, size, channels, features))
    kernel /= np.sqrt(size**2 * channels)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("shape", [(2, 3, 5, 40, 24), (1, 1, 1, 8, 8)], ids=str)
def test_products_are_the_convolution(shape, dtype, tolerance):
    x, kernel = arrays(*shape, dtype)
    program = str(jax.make_jaxpr(convolution.product, static_argnums=2)(x, kernel, 1))
    assert "conv_general_dilated" not in program
    pairs = zip(
        with_gradient(ours, x, kernel), with_gradient(theirs, x, kernel), strict=True
    )
    for our, their in pairs:
        assert np.linalg.norm(our - their) <= tolerance * np.linalg.norm(their)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_what_a_cpu_computes_is_the_convolution(size, stride, dtype, tolerance):
    x, kernel = arrays(2, 5, 4, 12, 7, dtype, size)
    our, their = (
        with_gradient(functools.partial(way, stride=stride), x, kernel)
        for way in (ours, theirs)
    )
    for one, other in zip(our, their, strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("size", [1, 3])
def test_bfloat16_is_multiplied_as_bfloat16_forward_and_backward(size):
    x, kernel = arrays(1, 4, 4, 8, 8, jnp.bfloat16, size)

    def both(x):
        out, pull_back = jax.vjp(lambda x: ours(x, kernel), x)
        return pull_back(out)

    products = [
        line
        for line in jax.jit(both).lower(x).as_text().splitlines()
        if "stablehlo.dot_general" in line
    ]
    assert len(products) >= 2
    for line in products:
        operands = line.rpartition(": (")[2].partition(")")[0]
        assert operands.count("bf16") == 2, line


def test_in_a_loop_no_kernel_is_read_crosswise():
    """XLA's own gradient does, and takes three times as long for it."""

    def loop(function, x, kernel):
        gradient = jax.grad(lambda x: jnp.sum(function(x, kernel) ** 2))
        return lax.fori_loop(0, 3, lambda i, x: x + gradient(x), x)

    def text(function):
        jitted = jax.jit(loop, static_argnums=0)
        given = arrays(1, 16, 16, 64, 64, jnp.float32)
        return jitted.lower(function, *given).compile().as_text()

    assert "01oi" in text(theirs)  # or this test shows nothing
    assert "01oi" not in text(ours) and "convolution(" in text(ours)


@pytest.mark.parametrize(
    ("shape", "dtype", "stride", "products"),
    [
        ((1, 16, 16, 1280, 8), jnp.float32, 1, True),
        ((1, 64, 64, 320, 8), jnp.float32, 1, False),
        ((1, 64, 64, 320, 8), jnp.float32, 2, True),
        ((1, 64, 64, 320, 8), jnp.bfloat16, 1, True),
    ],
)
def test_cpu_takes_products_where_they_are_faster(shape, dtype, stride, products):
    way = functools.partial(ours, stride=stride)
    program = jax.jit(way).lower(*arrays(*shape, dtype))
    assert ("stablehlo.convolution" in program.as_text()) != products


def test_another_platform_takes_its_own_convolution():
    program = jax.jit(ours).trace(*arrays(1, 4, 4, 40, 8, jnp.bfloat16))
    text = program.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in text and "stablehlo.dot_general" not in text
