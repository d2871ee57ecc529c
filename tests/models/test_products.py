"""Products of a linear layer are what they say, forward and backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.models import layers, products


def arrays(shape, features, dtype):
    random = np.random.default_rng(0)
    x = random.normal(size=shape)
    kernel = random.normal(size=(shape[-1], features)) / np.sqrt(shape[-1])
    d_out = random.normal(size=(*shape[:-1], features))
    return [jnp.asarray(each, dtype) for each in (x, kernel, d_out)]


def ours(x, kernel):
    return products.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def with_gradient(function, x, kernel, d_out):
    out, pull_back = jax.vjp(jax.jit(function), x, kernel)
    return [out, *pull_back(d_out)]


def text(x, kernel, d_out, platform=None):
    traced = jax.jit(lambda *given: with_gradient(ours, *given)).trace(x, kernel, d_out)
    return traced.lower(lowering_platforms=platform and (platform,)).as_text()


def the_products(program):
    return [line for line in program.splitlines() if "stablehlo.dot_general" in line]


@pytest.mark.parametrize(
    "shape",  # the last two of fewer rows than make a turned kernel worth its while
    [(5, 24), (2, 7, 24), (2, 3, 5, 8), (2, 3, 40), (24,)],
    ids=str,
)
def test_forward_and_backward_are_numpys_rounded_once(shape):
    given = arrays(shape, 12, jnp.bfloat16)
    x, kernel, d_out = (np.asarray(each, np.float32) for each in given)
    rows = x.reshape(-1, shape[-1])
    expected = (x @ kernel, d_out @ kernel.T, rows.T @ d_out.reshape(len(rows), -1))
    for ours_, exact in zip(with_gradient(ours, *given), expected, strict=True):
        assert ours_.dtype == jnp.bfloat16 and ours_.shape == exact.shape
        # bfloat16 has 8 bits of which one is lost by rounding to nearest.
        np.testing.assert_allclose(
            np.asarray(ours_, np.float32), exact, rtol=2**-8, atol=1e-6
        )


def test_bfloat16_is_multiplied_as_bfloat16_and_summed_in_float32():
    lines = the_products(text(*arrays((2, 7, 24), 12, jnp.bfloat16)))
    assert len(lines) == 3
    for line in lines:
        operands, _, result = line.rpartition(": (")[2].partition(")")
        assert operands.count("bf16") == 2 and "f32" in result, line


def test_a_cpu_holds_no_kernel_in_float32():
    """Of every layer one would be held from the forward to the backward pass."""
    x, kernel, d_out = arrays((1, 64, 256), 512, jnp.bfloat16)
    # As the plain product is up to JAX 0.10: 512 KiB here.
    in_float32 = 4 * kernel.size

    def to_x(x, kernel, d_out):
        return jax.vjp(lambda x: ours(x, kernel), x)[1](d_out)

    compiled = jax.jit(to_x).lower(x, kernel, d_out).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < in_float32 / 2


def test_a_loop_turns_no_kernel_that_is_larger_than_what_it_meets():
    """XLA would turn it in a copy, and keep that for all steps."""
    x, kernel, _ = arrays((8, 256), 512, jnp.bfloat16)

    def held(turned):
        def loop(count, x, kernel):
            def body(i, x):
                out = products.multiply(x, kernel).astype(x.dtype)
                return turned(out, kernel).astype(x.dtype)

            return jax.lax.fori_loop(0, count, body, x)

        compiled = jax.jit(loop).lower(3, x, kernel).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    as_second_factor = held(lambda out, kernel: products.multiply(out, kernel.T))
    assert as_second_factor >= kernel.nbytes  # or this test shows nothing
    assert held(products.multiply_turned) < kernel.nbytes / 2


def test_float32_and_other_platforms_keep_the_plain_product():
    for dtype, platform in ((jnp.float32, None), (jnp.bfloat16, "tpu")):
        lines = the_products(text(*arrays((2, 7, 24), 12, dtype), platform))
        kept = "f32" if dtype == jnp.float32 else "bf16"
        assert len(lines) == 3
        assert all(line.count(f"x{kept}>") == 3 for line in lines)


def test_every_linear_layer_takes_it():
    layer = layers.dense(8, "layer", jnp.bfloat16)
    plain = nn.Dense(8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = jnp.ones((2, 3, 16), jnp.bfloat16)
    params = plain.init(jax.random.key(0), x)
    assert "preferred_element_type=float32" in str(
        jax.make_jaxpr(layer.apply)(params, x)
    )
    np.testing.assert_allclose(
        np.asarray(layer.apply(params, x), np.float32),
        np.asarray(plain.apply(params, x), np.float32),
        rtol=2**-6,
        atol=2**-6,  # the plain one rounds its sums
    )
