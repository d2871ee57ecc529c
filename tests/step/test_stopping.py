"""The fixed loss between steps: what it stops, and what is remembered of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.step import dispatch, stopping
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.slots import refill
from ti_flax.step.state import Rule, init_state

pytestmark = pytest.mark.usefixtures("networks")

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1)
BIRD = slots.Concept(seed=3, pictures=1, prompts=2, vectors=1)
EVERY, WINDOW = 3, 4


def make_recipe(**keys):
    return slots.make_recipe(**keys)._replace(fixed_loss_steps=EVERY, window=WINDOW)


def rules(eps=(), waits=()):
    """DVAR of some slots, then plateau of others: (patience, min_delta)."""
    each = [Rule.of_slot(dvar_eps=float(one)) for one in eps]
    each += [Rule.of_slot(patience=steps, min_delta=low) for steps, low in waits]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def make_run(recipe, *concepts, eps):
    """As `slots.make_run`, each concept with its share of the variance."""
    _, bank = slots.make_run(recipe, *concepts)
    rows = jax.tree.map(jnp.copy, bank.initial)
    state = init_state(rows, recipe.optimizer, recipe.window)
    bank = bank._replace(rule=rules(eps))
    return jax.device_put((state, bank), bank.row_mask.sharding)


def compiled(devices=1):
    """Recipe, weights and the steps, which are traced once for each number of slots."""
    recipe = make_recipe(devices=devices)
    return recipe, slots.make_frozen(recipe), slots.compiled(recipe)


def train(*concepts, eps, dispatches, devices=1):
    """The state in the end, and the metrics of every step."""
    recipe, frozen, run = compiled(devices)
    state, bank = make_run(recipe, *concepts, eps=eps)
    kept = []
    for count in dispatches:
        state, metrics = run(state, frozen, bank, count)
        kept.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], metrics))
    together = jax.tree.map(lambda *each: np.concatenate(each), *kept)
    return jax.tree.map(np.asarray, state), together


def stops_at(losses, window, eps):
    """How many losses DVAR takes until it stops, by the paper; None: it does not."""

    def variance(values):
        return np.mean((values - values.mean()) ** 2)

    for count in range(window, len(losses) + 1):
        seen = np.float64(losses[:count])
        if variance(seen[-window:]) < eps * variance(seen):
            return count
    return None


@pytest.mark.parametrize("window", [2, 7, 62])
@pytest.mark.parametrize("seed", range(4))
def test_a_slot_stops_where_the_paper_says(seed, window):
    random = np.random.default_rng(seed)
    # Falling to a level, at its own speed, with its own noise; and one that does not.
    n = np.arange(400)
    falling = [
        0.1 + 0.05 * np.exp(-n / speed) + noise * random.normal(size=n.size)
        for speed, noise in [(3, 1e-3), (20, 1e-3), (60, 3e-3), (20, 1e-5)]
    ]
    losses = np.float32([*falling, 0.2 - 1e-4 * n])
    eps = np.float32([0.15, 0.15, 0.4, 0.05, 1e-9])
    expected = [stops_at(*each) for each in zip(losses, [window] * 5, eps, strict=True)]
    assert None in expected and len(set(expected)) > 2

    rows = {"text_encoder": jnp.zeros((5, 1, 2))}
    progress = init_state(rows, slots.make_recipe().optimizer, window).progress
    note, found = jax.jit(stopping.note), [None] * 5
    for step in range(losses.shape[1]):
        # Each slot is evaluated after every second step, not all after the same.
        for part in (0, 1):
            now = jnp.where(jnp.arange(5) % 2 == part, losses[:, step], jnp.nan)
            number = jnp.full(5, 2 * step + part)
            progress = note(progress, now, number, rows, rules(eps))
        for slot in np.flatnonzero(progress.stopped):
            found[slot] = found[slot] or step + 1
    assert found == expected
    np.testing.assert_array_equal(progress.evaluations, [len(n)] * 5)
    np.testing.assert_allclose(progress.mean, losses.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        progress.deviations / len(n), np.float64(losses).var(axis=1), rtol=1e-3
    )
    np.testing.assert_array_equal(progress.best_loss, losses.min(axis=1))
    best = 2 * losses.argmin(axis=1) + np.arange(5) % 2
    np.testing.assert_array_equal(progress.best_step, best)


def plateaus_at(losses, steps, patience, min_delta):
    """After how many losses none was lower for so many steps, as PyTorch counts.

    `ReduceLROnPlateau` (mode min, threshold_mode rel) with its patience in steps.
    """
    best, best_step = np.inf, 0
    for count, (loss, step) in enumerate(zip(losses, steps, strict=True), start=1):
        if loss < best * (1 - min_delta):
            best, best_step = loss, step
        elif step - best_step >= patience:
            return count
    return None


@pytest.mark.parametrize("seed", range(4))
def test_a_slot_stops_where_its_loss_falls_no_more(seed):
    n, noise = np.arange(200), np.random.default_rng(seed).normal(size=200)
    falling = [
        0.1 + 0.05 * np.exp(-n / speed) + scale * noise
        for speed, scale in [(3, 0), (20, 1e-3), (60, 3e-3), (20, 1e-5)]
    ]
    losses = np.float32([*falling, 0.25 - 1e-3 * n])
    steps = 5 * (n + 1)
    waits = [(100, 0.005), (100, 0.005), (200, 0.0), (50, 0.05), (50, 0.004)]
    expected = [
        plateaus_at(each, steps, *wait)
        for each, wait in zip(losses, np.float32(waits).tolist(), strict=True)
    ]
    assert expected[-1] is None and len(set(expected)) > 2
    rows = {"text_encoder": jnp.zeros((5, 1, 2))}
    progress = init_state(rows, slots.make_recipe().optimizer, 1).progress
    note, found = jax.jit(stopping.note), [None] * 5
    for index, step in enumerate(steps):
        number = jnp.full(5, step, jnp.int32)
        progress = note(
            progress, jnp.array(losses[:, index]), number, rows, rules(waits=waits)
        )
        for slot in np.flatnonzero(progress.stopped):
            found[slot] = found[slot] or index + 1
    assert found == expected


@pytest.fixture(scope="module")
def trained(networks):
    """A cat that is never stopped beside a dog that is, for 24 steps."""
    return train(CAT, DOG, eps=[0.0, 0.6], dispatches=[24])


def test_the_dog_stops_and_the_cat_goes_on(trained):
    state, metrics = trained
    losses = metrics.fixed_loss[EVERY - 1 :: EVERY]
    stop = EVERY * stops_at(losses[:, 1], WINDOW, 0.6)
    assert EVERY * WINDOW <= stop < 24
    assert state.step.tolist() == [24, stop]
    assert state.progress.stopped.tolist() == [False, True]
    assert metrics.running[:, 1].tolist() == [step < stop for step in range(1, 25)]
    assert metrics.running[:, 0].all()
    # After its stop it is not evaluated, and not before the third step.
    due = np.isfinite(metrics.fixed_loss)
    steps = np.arange(1, 25)
    np.testing.assert_array_equal(due[:, 0], steps % EVERY == 0)
    np.testing.assert_array_equal(due[:, 1], (steps % EVERY == 0) & (steps <= stop))
    # What it had learned by then is as it was, to the bit.
    before, _ = train(CAT, DOG, eps=[0.0, 0.6], dispatches=[stop])
    for late, early in zip(*map(jax.tree.leaves, (state, before)), strict=True):
        np.testing.assert_array_equal(late[1], early[1])


def test_looking_changes_no_step(trained):
    state, metrics = trained
    plain = slots.make_recipe()
    unseen, bank = slots.make_run(plain, CAT, DOG)
    run = slots.compiled(plain)
    unseen, seen = run(unseen, slots.make_frozen(plain), bank, 24)
    name = "text_encoder"
    # Another program is another rounding.
    np.testing.assert_allclose(state.rows[name][0], unseen.rows[name][0], atol=2e-5)
    np.testing.assert_allclose(metrics.loss[:, 0], seen.loss[:24, 0], rtol=1e-4)
    assert np.isnan(seen.fixed_loss[:24]).all() and unseen.progress is None


def test_what_is_seen_is_the_fixed_loss_of_the_rows_and_the_best_are_kept():
    recipe, frozen, run = compiled()
    fixed_loss, losses, rows = compile_fixed_loss(recipe), [], []
    state, bank = make_run(recipe, CAT, DOG, eps=[0.0, 0.0])
    for _ in range(5):
        state, metrics = run(state, frozen, bank, EVERY)
        expected = fixed_loss(state.rows, frozen, bank).mean
        losses.append(np.asarray(metrics.fixed_loss[EVERY - 1]))
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-5)
        rows.append(np.asarray(state.rows["text_encoder"]))
    best = np.argmin(losses, axis=0)
    np.testing.assert_array_equal(state.progress.best_step, EVERY * (best + 1))
    for slot in range(2):
        found = state.progress.best_rows["text_encoder"][slot]
        np.testing.assert_array_equal(found, rows[best[slot]][slot])


def test_dispatches_and_a_restart_change_no_bit(trained):
    again = train(CAT, DOG, eps=[0.0, 0.6], dispatches=[1, 7, 2, 14])
    jax.tree.map(np.testing.assert_array_equal, again, trained)


@pytest.mark.parametrize("devices", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_change_rounding_only(devices, trained):
    state, metrics = train(CAT, DOG, eps=[0.0, 0.6], dispatches=[24], devices=devices)
    assert state.step.tolist() == trained[0].step.tolist()
    np.testing.assert_allclose(
        metrics.fixed_loss, trained[1].fixed_loss, rtol=1e-4, equal_nan=True
    )


def test_a_slot_stops_where_it_stops_alone(trained):
    state, metrics = train(DOG, eps=[0.6], dispatches=[24])
    assert state.step[0] == trained[0].step[1]
    np.testing.assert_allclose(
        metrics.fixed_loss[:, 0], trained[1].fixed_loss[:, 1], rtol=1e-4, equal_nan=True
    )


def test_a_refilled_slot_starts_anew():
    recipe = make_recipe()
    state, bank = make_run(recipe, CAT, DOG, eps=[0.0, 1.0])
    frozen, run = slots.make_frozen(recipe), dispatch.jit_train_steps(recipe)
    state, _ = run(state, frozen, bank, np.int32(24))
    assert state.progress.stopped.tolist() == [False, True]
    state, bank = refill(state, bank, 1, *slots.newcomer(recipe, BIRD))
    assert state.progress.stopped.tolist() == [False, False]
    state, _ = run(state, frozen, bank, np.int32(7))
    assert state.step.tolist() == [31, 7]
    assert state.progress.evaluations.tolist() == [10, 2]
    assert state.progress.best_step[1] in (3, 6)
    assert run._cache_size() == 1
