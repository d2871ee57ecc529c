"""Pictures of several sizes in one step: drawn by seed and step, each as it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.step import buckets, dispatch, fixed_loss
from ti_flax.step.slots import Encoded, begin, refill, stack
from ti_flax.step.state import init_state

pytestmark = pytest.mark.usefixtures("networks")

SIZES = [(2, 6), (4, 4)]
CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = CAT._replace(seed=2)


def slot(concept, counts=(2, 3), views=2):
    """A concept with so many pictures of each size; `sizes` tell bucket and picture."""
    random = np.random.default_rng(concept.seed)
    encoded = []
    for number, ((height, width), count) in enumerate(zip(SIZES, counts, strict=True)):
        shape = count, views, height, width, 8
        sizes = np.zeros((count, views, 6), np.int32)
        sizes[..., 0], sizes[..., 1] = number, np.arange(count)[:, None]
        moments = random.normal(size=shape).astype(np.float32)
        encoded.append(Encoded(moments, sizes))
    return slots.make_slot(concept)._replace(buckets=encoded)


def train(recipe, *given, dispatches=(12,), restarted=False):
    """State and last metrics; restarted: as `slots.train` has it."""
    first, bank = stack(given)
    state = init_state(first, recipe.optimizer)
    frozen, run = slots.make_frozen(recipe), slots.compiled(recipe)
    for index, count in enumerate(dispatches):
        if restarted and index == 1:
            run = dispatch.compile_train_steps(recipe)
        state, metrics = run(state, frozen, bank, count)
        state = jax.tree.map(np.asarray, state)
    return state, metrics


def rows(result, index=0, vectors=2):
    return np.asarray(result[0].rows["text_encoder"])[index, :vectors]


@pytest.fixture(scope="module")
def twelve_steps(networks):
    return train(slots.make_recipe(), slot(CAT))


def test_each_picture_is_learned_from_as_often_as_it_counts():
    steps, own = 6000, slot(CAT, (2, 1))
    thrice = own.buckets[1]._replace(pictures=np.zeros(3, np.int32))
    own = own._replace(buckets=[own.buckets[0], thrice])
    _, bank = stack([own, slot(DOG, (4, 4)), slot(DOG, (0, 1))])
    each = jnp.arange(steps)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda step: buckets.draw(bank, jnp.full(3, step))))(each)
    )
    for index, expected in enumerate([(2, 3), (4, 4), (0, 1)]):
        found = np.bincount(drawn[:, index], minlength=2) / steps
        shares = np.array(expected) / sum(expected)
        bound = 5 * np.sqrt(shares * (1 - shares) / steps)
        assert (np.abs(found - shares) <= bound).all()
    assert np.mean(drawn[:, 0] == drawn[:, 1]) < 0.6  # each by its own seed


def test_a_batch_of_a_bucket_has_its_size_and_its_pictures():
    _, bank = stack([slot(CAT), slot(DOG, (1, 2))])
    for number, (height, width) in enumerate(SIZES):
        one = buckets.only(bank, number)
        batch = slots.draw(one, jnp.zeros(2, int), jnp.arange(64))
        assert batch.latents.shape == (2, 64, height, width, 4)
        assert (np.asarray(batch.sizes[..., 0]) == number).all()
        assert set(np.asarray(batch.sizes[0, :, 1])) == set(range((2, 3)[number]))


def test_a_step_is_that_of_the_bucket_that_its_seed_draws(twelve_steps):
    """Against banks that have this bucket alone, one step at a time."""
    recipe, own = slots.make_recipe(), slot(CAT)
    first, bank = stack([own])
    state = init_state(first, recipe.optimizer)
    run, frozen = slots.compiled(recipe), slots.make_frozen(recipe)
    taken = []
    for step in range(12):
        number = int(buckets.draw(bank, jnp.full(1, step))[0])
        taken.append(number)
        state, _ = run(state, frozen, buckets.only(bank, number), 1)
    assert set(taken) == {0, 1}
    found = np.asarray(state.rows["text_encoder"])[0]
    np.testing.assert_allclose(found, rows(twelve_steps), rtol=0, atol=2e-5)


def test_dispatches_and_a_restart_change_no_bit(twelve_steps):
    parts = train(slots.make_recipe(), slot(CAT), dispatches=[1, 5, 6], restarted=True)
    jax.tree.map(np.testing.assert_array_equal, parts[0], twelve_steps[0])


# Tolerances of the following: tests/step/test_train_step.py.
@pytest.mark.parametrize(
    ("devices", "batch", "parts"),
    [
        (8, 2, 4),
        pytest.param(8, 8, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_devices_and_parts_change_nothing(twelve_steps, devices, batch, parts):
    found = train(slots.make_recipe(devices, batch, parts), slot(CAT))
    np.testing.assert_allclose(rows(found), rows(twelve_steps), rtol=0, atol=2e-5)


def test_beside_others_and_refilled_a_concept_learns_as_alone(twelve_steps):
    recipe, dog = slots.make_recipe(), slot(DOG)
    found = train(recipe, dog, slot(CAT))
    np.testing.assert_allclose(rows(found, 1), rows(twelve_steps), rtol=0, atol=2e-5)
    alone = rows(train(recipe, dog))
    np.testing.assert_allclose(rows(found), alone, rtol=0, atol=2e-5)
    # And one that takes the place of another, with fewer pictures.
    first, bank = stack([slot(CAT), slot(CAT)])
    state = init_state(first, recipe.optimizer)
    few = slot(DOG, (0, 3))
    state, bank = refill(state, bank, 1, few, begin(few, recipe.optimizer, None))
    run = slots.compiled(recipe)
    state, _ = run(state, slots.make_frozen(recipe), bank, 12)
    _, bank = stack([few])
    state_alone = init_state(stack([few])[0], recipe.optimizer)
    state_alone, _ = run(
        state_alone, slots.make_frozen(recipe), buckets.only(bank, 1), 12
    )
    found, expected = (
        np.asarray(each.rows["text_encoder"])[-1] for each in (state, state_alone)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_the_fixed_loss_is_that_of_each_bucket_as_it_counts():
    recipe, counts = slots.make_recipe(), (2, 3)
    first, bank = stack([slot(CAT, counts), slot(DOG, (0, 1))])
    loss = fixed_loss.compile_fixed_loss(recipe)
    frozen = slots.make_frozen(recipe)
    found = loss(first, frozen, bank)
    each = [loss(first, frozen, buckets.only(bank, i)) for i in (0, 1)]
    for field in ("mean", "quarters"):
        one, other = (np.asarray(getattr(result, field)) for result in each)
        expected = np.stack([(2 * one[0] + 3 * other[0]) / 5, other[1]])
        np.testing.assert_allclose(getattr(found, field), expected, rtol=1e-5)


def test_several_crops_are_views_like_the_mirror_image():
    _, bank = stack([slot(CAT, views=8)])
    one = buckets.only(bank, 1)
    drawn = slots.draw(one, jnp.zeros(1, int), jnp.arange(4096))
    moments = np.asarray(one.buckets[0].moments[0, 0, :, 0, 0, 0])
    scale = slots.FAMILY.scale.factor
    logvar = np.asarray(one.buckets[0].moments[0, 0, :, 0, 0, 4])
    # The mean over the draws is that over all views.
    spread = np.sqrt(np.var(moments) + np.mean(np.exp(logvar)))
    found = np.asarray(drawn.latents[0, :, 0, 0, 0]).mean() / scale
    assert abs(found - moments.mean()) < 5 * spread / np.sqrt(4096)
