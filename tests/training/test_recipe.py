"""From keys to the step of a run."""

import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.config.run_config import Config
from ti_flax.runtime import sharding
from ti_flax.step.optimizer import Hold
from ti_flax.training.recipe import make_recipe

START = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
GRADS = np.random.default_rng(1).normal(size=(3, 2, 8)).astype(np.float32)
RATE = 0.01


def recipe_of(**keys):
    config = Config(
        pretrained_model_name_or_path="sd",
        train_data_dir="pictures",
        placeholder_token="<cat>",
        **keys,
    )
    return make_recipe(config, slots.FAMILY, 64, sharding.make_mesh())


def learn(optimizer):
    """Rows after each of three steps, without a hold."""
    rows = {"text_encoder": jnp.asarray(START)}
    state, found = optimizer.init(rows), []
    for grad in GRADS:
        updates, state = optimizer.update(
            {"text_encoder": jnp.asarray(grad)},
            state,
            rows,
            active=jnp.ones(2, bool),
            learning_rate=jnp.float32(RATE),
        )
        rows = {"text_encoder": rows["text_encoder"] + updates["text_encoder"]}
        found.append(np.asarray(rows["text_encoder"]))
    return found


def test_adams_numbers_reach_the_step():
    """Kingma & Ba 2015, algorithm 1, with the decay of Loshchilov & Hutter 2019."""
    beta1, beta2, epsilon, decay = 0.5, 0.6, 1e-2, 0.3
    recipe = recipe_of(
        adam_beta1=beta1,
        adam_beta2=beta2,
        adam_epsilon=epsilon,
        adam_weight_decay=decay,
    )
    assert recipe.hold is None
    row, mean, square = START.astype(np.float64), 0.0, 0.0
    for t, (grad, found) in enumerate(zip(GRADS, learn(recipe.optimizer), strict=True)):
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        hat = mean / (1 - beta1 ** (t + 1)), square / (1 - beta2 ** (t + 1))
        row = row - RATE * (hat[0] / (hat[1] ** 0.5 + epsilon) + decay * row)
        np.testing.assert_allclose(found, row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["initializer", "median"])
def test_the_direction_of_the_start_pulls_as_directional_prior_says(kind, kappa):
    recipe = recipe_of(
        optimizer="directional", directional_prior=kappa, hold_row_norm=kind
    )
    assert isinstance(recipe.hold, Hold) and recipe.hold.kind == kind
    row = START.astype(np.float64)
    for grad, found in zip(GRADS, learn(recipe.optimizer), strict=True):
        m = np.linalg.norm(row, axis=-1, keepdims=True)
        mu = START / np.linalg.norm(START, axis=-1, keepdims=True)
        g = m * grad - kappa * mu
        g -= (g * row).sum(axis=-1, keepdims=True) * row / m**2
        row = row - RATE * m * g / np.linalg.norm(g, axis=-1, keepdims=True)
        np.testing.assert_allclose(found, row, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_before_the_prior():
    """It weighs more beside a gradient that was made short."""
    keys = {"optimizer": "directional", "hold_row_norm": "initializer"}
    long, short, none = (
        learn(recipe_of(**keys, directional_prior=1e-3, **limit).optimizer)
        for limit in ({}, {"max_grad_norm": 1e-4}, {"max_grad_norm": 1e3})
    )
    np.testing.assert_array_equal(long, none)
    assert np.abs(long[-1] - short[-1]).max() > 1e-3
