"""Timesteps that are spread over the examples of a step, against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots
from invariants import agrees_beside, agrees_in_parts, rows_of

from ti_flax.diffusion import timestep_tables
from ti_flax.diffusion.edm import Edm
from ti_flax.diffusion.objective import PLAIN, Objective
from ti_flax.step import buckets
from ti_flax.step.bank import draw_batch
from ti_flax.step.slots import Encoded, stack

T = slots.FAMILY.process.num_timesteps
B = 8
CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1, captioned=True)
SPREAD = Objective(strata=B)
SHARES = timestep_tables.biased_frequencies(T, slice(600, 800), 3.0, slice(50, 900))
CUMULATIVE = np.minimum(np.cumsum(SHARES), 1).astype(np.float32)
UNUSED = jax.random.key(0)
BIASED = Objective(strata=B, cumulative=jnp.asarray(CUMULATIVE))


def make_recipe(*arguments, **settings):
    return slots.make_recipe(*arguments, **settings)._replace(objective=SPREAD)


def draw(bank, steps, examples, objective):
    return jax.jit(
        lambda steps, examples: draw_batch(
            bank, steps, examples, slots.FAMILY, objective
        )
    )(jnp.asarray(steps), jnp.asarray(examples))


def shares(seed, step):
    """(i + u) / B of a step's examples, float64."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    u = float(jax.random.uniform(jax.random.fold_in(key, 2**32 - 2)))
    return (np.arange(B) + u) / B


@pytest.fixture(scope="module")
def bank():
    return slots.make_run(slots.make_recipe(), CAT, DOG)[1]


def test_times_are_those_of_the_formula(bank):
    offsets = set()
    for steps in ([0, 0], [1, 7], [1000, 8]):
        found = np.asarray(draw(bank, steps, np.arange(B), SPREAD).times)
        for slot, concept in enumerate((CAT, DOG)):
            share = shares(concept.seed, steps[slot])
            np.testing.assert_array_equal(found[slot], np.floor(T * share))
            # One example in each part.
            np.testing.assert_array_equal(found[slot] * B // T, np.arange(B))
            offsets.add(round(share[0], 5))
    assert len(offsets) == 6  # another one of each seed and of each step


def test_with_limits_and_a_bias_they_are_the_inverse_of_the_shares(bank):
    for step in range(3):
        found = np.asarray(draw(bank, [step, step], np.arange(B), BIASED).times)
        for slot, concept in enumerate((CAT, DOG)):
            share = shares(concept.seed, step)
            expected = [np.flatnonzero(s < CUMULATIVE)[0] for s in share]
            np.testing.assert_array_equal(found[slot], expected)
            # Of the range, as many as its share of all, but for the ends.
            count = ((found[slot] >= 600) & (found[slot] < 800)).sum()
            assert abs(count - B * SHARES[600:800].sum()) < 1


def test_every_timestep_is_drawn_as_often_as_its_share_says(bank):
    """Over many steps, of which each has another offset."""
    steps = jnp.arange(4000)

    def times(objective):
        def one(step):
            key = jax.random.fold_in(jax.random.key(5), step)
            return jax.vmap(
                lambda i: objective.draw_times(
                    key, slots.FAMILY.process, objective.spread(key, i)
                )
            )(jnp.arange(B))

        return np.asarray(jax.jit(jax.vmap(one))(steps)).ravel()

    for objective, expected in ((SPREAD, np.full(T, 1 / T)), (BIASED, SHARES)):
        found = np.bincount(times(objective), minlength=T) / (B * len(steps))
        assert len(found) == T and not found[expected == 0].any()
        # Five standard deviations of the counts of independent steps.
        bound = 5 * np.sqrt(expected / (B * len(steps)))
        assert np.all(np.abs(found - expected) <= bound)


def test_the_mean_over_a_step_varies_less_than_that_of_independent_times(bank):
    def deviation(objective):
        def mean(step):
            steps, examples = jnp.full(2, step), jnp.arange(B)
            batch = draw_batch(bank, steps, examples, slots.FAMILY, objective)
            return batch.times[0].mean() / T

        return np.std(jax.jit(jax.vmap(mean))(jnp.arange(400)))

    # Of one time it is 1 / sqrt(12): divided by sqrt(B), and by B.
    assert deviation(PLAIN) == pytest.approx(1 / np.sqrt(12 * B), rel=0.15)
    assert deviation(SPREAD) == pytest.approx(1 / (np.sqrt(12) * B), rel=0.15)


def test_nothing_else_of_an_example_changes(bank):
    plain, found = (draw(bank, [4, 9], np.arange(B), each) for each in (PLAIN, SPREAD))
    same = {"times": None}
    jax.tree.map(
        np.testing.assert_array_equal, plain._replace(**same), found._replace(**same)
    )
    assert (plain.times != found.times).mean() > 0.9


def test_an_example_is_a_function_of_seed_step_and_index(bank):
    whole = draw(bank, [4, 9], np.arange(B), SPREAD)
    tail = draw(bank, [4, 9], np.arange(5, B), SPREAD)
    jax.tree.map(lambda w, t: np.testing.assert_array_equal(w[:, 5:], t), whole, tail)


def test_each_size_of_pictures_has_the_same_times():
    random = np.random.default_rng(0)
    sizes = [(2, 6), (4, 4)]
    encoded = [
        Encoded(
            random.normal(size=(2, 2, *size, 8)).astype(np.float32),
            np.zeros((2, 2, 6), np.int32),
        )
        for size in sizes
    ]
    _, bank = stack([slots.make_slot(CAT)._replace(buckets=encoded)])
    for number in range(len(sizes)):
        found = draw(buckets.only(bank, number), [3], np.arange(B), SPREAD)
        np.testing.assert_array_equal(found.times[0], np.floor(T * shares(CAT.seed, 3)))


def test_noise_levels_of_edm_are_spread_too():
    process = Edm(jnp.geomspace(0.002, 80, 40), 0.5, 1.0)
    at = np.linspace(0, 1, 81)[:-1].astype(np.float32)
    found = jax.vmap(lambda share: SPREAD.draw_times(UNUSED, process, share))(at)
    np.testing.assert_array_equal(found, np.arange(80) // 2)


def test_the_last_share_is_below_1_however_it_is_rounded():
    count = 2**14
    keys = jax.random.split(jax.random.key(0), 20_000)
    u = jax.vmap(jax.random.uniform)(keys)
    assert ((count - 1 + u) / count == 1).any()
    spread = Objective(strata=count).spread
    found = jax.vmap(lambda key: spread(key, jnp.int32(count - 1)))(keys)
    assert found.max() < 1
    for objective, last in ((SPREAD, T - 1), (BIASED, 899)):
        times = jax.vmap(
            lambda share, objective=objective: objective.draw_times(
                UNUSED, slots.FAMILY.process, share
            )
        )(found)
        assert times.max() == last


@pytest.fixture(scope="module")
def twenty_steps(networks):
    return slots.train(make_recipe(), CAT, dispatches=[20])


def test_ten_and_ten_steps_equal_twenty_bit_for_bit(twenty_steps):
    resumed = slots.train(make_recipe(), CAT, dispatches=[10, 10], restarted=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, twenty_steps)
    plain = slots.train(slots.make_recipe(), CAT, dispatches=[20])
    assert np.abs(rows_of(plain) - rows_of(twenty_steps)).max() > 1e-2


@pytest.mark.parametrize(
    ("devices", "batch", "parts"),
    [(8, 2, 4), pytest.param(8, 8, 1, marks=pytest.mark.slow)],
)
def test_devices_and_parts_agree_with_one(twenty_steps, devices, batch, parts):
    agrees_in_parts(make_recipe, CAT, twenty_steps, devices, batch, parts)


def test_a_concept_beside_another_learns_what_it_learns_alone(twenty_steps):
    agrees_beside(make_recipe, DOG, CAT, twenty_steps)
