"""A text encoder in bfloat16 says what it says in float32, to bfloat16's rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.models import families, known
from ti_flax.models.random_params import random_params
from ti_flax.models.torch_params import param_shapes

ENCODERS = {
    "tiny": "text_encoder",
    "tiny_sdxl": "text_encoder_2",
    "tiny_ldm": "text_encoder",
}


@pytest.mark.parametrize(("shape", "name"), ENCODERS.items())
def test_states_and_the_gradient_to_the_rows_are_those_of_float32(shape, name):
    """A rounding is at most 2^-9 of a number; here tens of them come together."""
    configs, random = known.SHAPES[shape], np.random.default_rng(0)
    family = families.make_family(configs)
    halved = family.clone_text_encoder(name, dtype=jnp.bfloat16)
    (at,) = (i for i, each in enumerate(family.text_encoders) if each.name == name)
    exact, half = family.text_encoders[at], halved.text_encoders[at]
    others = zip(family.text_encoders, halved.text_encoders, strict=True)
    assert [a == b for a, b in others].count(False) == 1
    params = random_params(configs, name)
    ids = random.integers(0, exact.vocab_size, (2, exact.length), np.int32)
    ids[:, 3], ids[:, -1] = exact.vocab_size, exact.vocab_size - 1
    rows = 0.02 * jnp.asarray(random.standard_normal((2, 1, exact.width), np.float32))

    def states(rows, encoder):
        shapes = param_shapes(encoder.module)
        own = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), params, shapes)
        found = encoder.module.apply({"params": own}, jnp.asarray(ids), rows)
        return jax.tree.map(lambda x: (x.astype(jnp.float32) ** 2).mean(), found), found

    def total(rows, encoder):
        means, found = states(rows, encoder)
        return sum(jax.tree.leaves(means)), found

    both = jax.value_and_grad(total, has_aux=True)
    (_, found), gradient = jax.jit(functools.partial(both, encoder=exact))(rows)
    (_, near), slope = jax.jit(functools.partial(both, encoder=half))(rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(near), strict=True):
        assert b.dtype == jnp.float32
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert 1e-5 < error < 0.02
    assert slope.dtype == jnp.float32
    error = np.linalg.norm(gradient - slope) / np.linalg.norm(gradient)
    assert 1e-5 < error < 0.05
