"""Steps over a sphere: Directional Textual Inversion, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots
from invariants import agrees_beside, agrees_in_parts, rows_of

from ti_flax.step import train_step
from ti_flax.step.optimizer import Hold, directional

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1)
RATE, PRIOR = 0.03, 0.2
OPTIMIZER = directional(PRIOR, None)
HOLD = Hold("initializer", 0.0)
WIDTHS = {"text_encoder": 6, "text_encoder_2": 10}


def make_recipe(*arguments, **settings):
    return slots.make_recipe(*arguments, **settings)._replace(
        optimizer=OPTIMIZER, hold=HOLD
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def formula(row, start, length, grad, rate):
    """One step of one row, float64."""
    v, start = unit(row), unit(start)
    g = length * grad - PRIOR * start
    g -= np.dot(g, v) * v
    return length * unit(v - rate * unit(g))


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=(2, 3, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }


def run(rows, hold, steps=4, optimizer=OPTIMIZER, row_mask=((1, 1, 1), (1, 1, 0))):
    """Rows of two slots after each step of their own rates, and the gradients."""
    recipe = slots.make_recipe()._replace(optimizer=optimizer, hold=hold)
    _, bank = slots.make_run(recipe, CAT, DOG)
    bank = bank._replace(
        row_mask=jnp.array(row_mask, bool),
        learning_rates=jnp.float32([[RATE], [2 * RATE]]),
        max_train_steps=jnp.int32([steps, 2]),
        initial=jax.tree.map(jnp.asarray, rows),
        norms={name: jnp.float32([0.4, 0.7]) for name in rows},
    )
    state = train_step.State(
        step=jnp.zeros(2, jnp.int32),
        skipped=jnp.zeros(2, jnp.int32),
        rows=bank.initial,
        opt_state=jax.vmap(optimizer.init)(bank.initial),
    )
    apply = jax.jit(lambda *given: train_step.apply_gradients(*given, recipe))
    random, found, grads = np.random.default_rng(1), [], []
    for _ in range(steps):
        grads.append(
            {
                name: random.normal(size=each.shape).astype(np.float32)
                for name, each in rows.items()
            }
        )
        state, _ = apply(
            state, jnp.zeros(2), jax.tree.map(jnp.asarray, grads[-1]), bank
        )
        found.append(jax.tree.map(np.array, state.rows))
    return found, grads


@pytest.mark.parametrize("kind", ["initializer", "median"])
def test_steps_are_those_of_the_formula(rows, kind):
    """Several rows, two text encoders, a slot that stops and a row that is padding."""
    found, grads = run(rows, Hold(kind, 0.0))
    for name, start in rows.items():
        expected = start.astype(np.float64)
        for step, (now, grad) in enumerate(zip(found, grads, strict=True)):
            for slot, k in np.ndindex(2, 3):
                if slot == 1 and (k == 2 or step >= 2):
                    continue
                row, rate = expected[slot, k], (RATE, 2 * RATE)[slot]
                length = np.linalg.norm(row)
                new = formula(row, start[slot, k], length, grad[name][slot, k], rate)
                # Where it starts a row has its own length.
                held = length if kind == "initializer" else (0.4, 0.7)[slot]
                expected[slot, k] = held * unit(new)
            np.testing.assert_allclose(now[name], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[-1][name][1, 2], start[1, 2])


def test_a_step_is_the_rate_long_whatever_the_gradient_and_the_length_stays(rows):
    found, _ = run(rows, HOLD)
    for before, after in zip([rows, *found[:1]], found[:2], strict=True):
        for name, start in rows.items():
            lengths = np.linalg.norm(after[name], axis=-1)
            np.testing.assert_allclose(
                lengths, np.linalg.norm(start, axis=-1), rtol=1e-6
            )
            cosines = (unit(before[name]) * unit(after[name])).sum(axis=-1)
            # A step along a tangent, and back to the sphere.
            rates = np.float64([[RATE] * 3, [2 * RATE] * 2 + [0]])
            np.testing.assert_allclose(
                np.arccos(np.minimum(cosines, 1)), np.arctan(rates), atol=1e-3
            )


def test_a_gradient_of_0_leaves_a_row_where_it_is():
    """There is no direction in rounding, of the prior along the row either."""
    start = {"text_encoder": jnp.asarray(np.random.default_rng(3).normal(size=(2, 8)))}
    start = jax.tree.map(lambda each: each.astype(jnp.float32), start)
    optimizer = directional(1e-4, None)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, start),
        optimizer.init(start),
        start,
        active=jnp.array([True, True]),
        learning_rate=jnp.float32(1),
    )
    assert np.abs(updates["text_encoder"]).max() < 1e-2


def test_without_a_gradient_the_prior_leads_back_to_the_start():
    random = np.random.default_rng(3)
    start = {"text_encoder": jnp.asarray(random.normal(size=(1, 8)), jnp.float32)}
    row = jax.tree.map(lambda each: each + 0.5, start)
    state, optimizer = OPTIMIZER.init(start), OPTIMIZER

    def cosine(rows):
        both = (
            unit(np.asarray(rows["text_encoder"])),
            unit(np.asarray(start["text_encoder"])),
        )
        return (both[0] * both[1]).sum()

    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, row),
        state,
        row,
        active=jnp.array([True]),
        learning_rate=jnp.float32(RATE),
    )
    after = jax.tree.map(jnp.add, row, updates)
    angles = [np.arccos(cosine(rows)) for rows in (row, after)]
    assert angles[0] - angles[1] == pytest.approx(np.arctan(RATE), rel=1e-3)


def test_each_text_encoder_has_its_own_rate(rows):
    factors = {"text_encoder_2": 0.25, "text_encoder": 0.0}
    still = Hold("initializer", 0.0, still=("text_encoder",))
    some, _ = run(rows, still, 1, directional(PRIOR, None, factors))
    np.testing.assert_array_equal(some[0]["text_encoder"], rows["text_encoder"])
    before, after = (unit(each["text_encoder_2"][0]) for each in (rows, some[0]))
    angles = np.arccos(np.minimum((before * after).sum(axis=-1), 1))
    np.testing.assert_allclose(angles, np.arctan(RATE / 4), rtol=1e-2)


@pytest.fixture(scope="module")
def twenty_steps(networks):
    return slots.train(make_recipe(), CAT, dispatches=[20])


def test_the_state_is_rows_and_where_they_started(twenty_steps):
    state, _ = slots.make_run(make_recipe(), CAT)
    start = np.asarray(state.rows["text_encoder"])
    shapes = [leaf.shape for leaf in jax.tree.leaves(twenty_steps)]
    assert sorted(shapes) == [(1,), (1,), start.shape, start.shape]
    (kept,) = jax.tree.leaves(twenty_steps.opt_state)
    np.testing.assert_allclose(kept, unit(start), rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(rows_of(twenty_steps), axis=-1),
        np.linalg.norm(start, axis=-1),
        rtol=1e-6,
    )
    assert np.abs(rows_of(twenty_steps) - start).max() > 1e-2


def test_ten_and_ten_steps_equal_twenty_bit_for_bit(twenty_steps):
    resumed = slots.train(make_recipe(), CAT, dispatches=[10, 10], restarted=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, twenty_steps)


def test_dispatch_length_changes_no_bit(twenty_steps):
    found = slots.train(make_recipe(), CAT, dispatches=[1, 12, 7])
    jax.tree.map(np.testing.assert_array_equal, found, twenty_steps)


@pytest.mark.parametrize(
    ("devices", "batch", "parts"),
    [(8, 2, 4), pytest.param(8, 8, 1, marks=pytest.mark.slow)],
)
def test_devices_and_parts_agree_with_one(twenty_steps, devices, batch, parts):
    agrees_in_parts(make_recipe, CAT, twenty_steps, devices, batch, parts)


def test_a_concept_beside_another_learns_what_it_learns_alone(twenty_steps):
    agrees_beside(make_recipe, DOG, CAT, twenty_steps)
