"""Each text encoder's rows may have a learning rate of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ti_flax.step.optimizer import Hold, adamw

WIDTHS = {"text_encoder": 6, "text_encoder_2": 10}


def learn(rate: float, factors, weight_decay: float):
    """Rows by encoder before, and after 5 steps."""
    random = np.random.default_rng(0)
    rows = {
        name: jnp.asarray(random.normal(size=(3, width)), jnp.float32)
        for name, width in WIDTHS.items()
    }
    first, optimizer = rows, adamw(0.9, 0.999, 1e-8, weight_decay, 1.0, factors)
    state, active = optimizer.init(rows), jnp.ones(3, bool)
    for _ in range(5):
        grads = jax.tree.map(
            lambda each: jnp.asarray(random.normal(size=each.shape), jnp.float32), rows
        )
        updates, state = optimizer.update(
            grads, state, rows, active=active, learning_rate=jnp.float32(rate)
        )
        rows = optax.apply_updates(rows, updates)
    return first, rows


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", WIDTHS)
def test_an_encoders_rate_is_that_of_a_run_at_that_rate(name, weight_decay):
    """But for the decay, the gradients here do not depend on the rows."""
    other = next(each for each in WIDTHS if each != name)
    _, rows = learn(1e-2, {name: 0.25}, weight_decay)
    _, slow = learn(0.25e-2, {}, weight_decay)
    _, plain = learn(1e-2, {}, weight_decay)
    np.testing.assert_allclose(rows[name], slow[name], rtol=1e-6)
    np.testing.assert_array_equal(rows[other], plain[other])
    assert np.abs(rows[name] - plain[name]).max() > 1e-3


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_rate_of_0_keeps_rows_to_the_bit(weight_decay):
    first, rows = learn(1e-2, {"text_encoder_2": 0.0}, weight_decay)
    np.testing.assert_array_equal(rows["text_encoder_2"], first["text_encoder_2"])
    assert np.all(rows["text_encoder"] != first["text_encoder"])


@pytest.mark.parametrize("kind", ["clip", "median", "initializer", "decay"])
def test_rows_of_an_encoder_that_learns_nothing_are_not_held(kind):
    rng = np.random.default_rng(0)
    rows, initial = (
        {name: jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.float32) for name in "ab"}
        for _ in range(2)
    )
    norms, rate = {name: jnp.full(1, 0.5) for name in "ab"}, jnp.full(1, 0.1)
    hold = Hold(kind, 0.5, still=("b",))
    held = hold.of_slots(rows, initial, norms, rate, jnp.ones((1, 2), bool))
    assert (held["b"] == rows["b"]).all() and (held["a"] != rows["a"]).all()
