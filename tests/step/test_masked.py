"""Masks: what the errors of latents count, in an example and in a run."""

import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.diffusion.objective import Objective
from ti_flax.step.slots import refill, stack
from ti_flax.step.state import init_state

pytestmark = pytest.mark.usefixtures("networks")

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2, masked=True)
DOG = slots.Concept(seed=2, pictures=5, prompts=7, vectors=1)


@pytest.fixture(scope="module")
def recipe(networks):
    return slots.make_recipe()


def test_a_bank_without_masks_takes_none(recipe):
    state, bank = slots.make_run(recipe, DOG)
    with pytest.raises(ValueError, match="masks"):
        refill(state, bank, 0, *slots.newcomer(recipe, CAT))


def test_masks_that_are_white_teach_what_none_teach(recipe):
    """And those of before teach something else."""
    slot = slots.make_slot(CAT)
    (encoded,) = slot.buckets
    ones = np.ones_like(encoded.loss_weights)
    white = slot._replace(buckets=[encoded._replace(loss_weights=ones)])
    none = slot._replace(buckets=[encoded._replace(loss_weights=None)])
    found = []
    for each in (slot, white, none):
        first, bank = stack([each])
        state = init_state(first, recipe.optimizer)
        run = slots.compiled(recipe)
        state, _ = run(state, slots.make_frozen(recipe), bank, 4)
        found.append(np.asarray(state.rows["text_encoder"]))
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_a_mask_is_drawn_with_its_view_and_left_out_at_its_rate():
    draws = 4096
    slot = slots.make_slot(CAT)
    # Every view tells itself by its sizes and by its weights.
    views = np.arange(6).reshape(3, 2)
    sizes = np.zeros((3, 2, 6), np.int32) + views[..., None].astype(np.int32)
    weights = np.zeros((3, 2, 4, 4), np.float32) + (views[..., None, None] + 2) / 10
    encoded = slot.buckets[0]._replace(
        sizes=sizes, loss_weights=weights.astype(np.float32)
    )
    _, bank = stack([slot._replace(buckets=[encoded])])
    batch = slots.draw(bank, jnp.zeros(1, int), jnp.arange(draws))
    assert batch.loss_weights.shape == (1, draws, 4, 4)
    drawn = np.asarray(batch.loss_weights[0])
    np.testing.assert_array_equal(drawn.min((1, 2)), drawn.max((1, 2)))
    whole = drawn[:, 0, 0] == 1
    own = np.float32((np.asarray(batch.sizes[0, :, 0]) + 2) / 10)
    np.testing.assert_array_equal(drawn[~whole, 0, 0], own[~whole])
    assert abs(whole.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / draws)


@pytest.mark.parametrize("loss_type", ["l2", "huber", "smooth_l1"])
def test_the_loss_is_the_mean_of_weighted_errors(loss_type):
    """Over all latents, not over the mask: kohya's and OneTrainer's."""
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 5, 4, 6, 3))
    weights = random.uniform(size=(5, 4, 6))
    times, c = np.array([0, 1, 2, 1, 0]), np.array([0.1, 0.5, 2.0])
    objective = Objective()
    if loss_type != "l2":
        objective = Objective(loss_type, huber_c=jnp.asarray(c, jnp.float32))
    arrays = [jnp.asarray(a, jnp.float32) for a in (prediction, target, weights)]
    found = objective.losses(arrays[0], arrays[1], jnp.asarray(times), arrays[2])
    for index, time in enumerate(times):
        error = np.abs(prediction[index] - target[index])
        each = {
            "l2": error**2,
            "huber": 2 * c[time] * (np.hypot(error, c[time]) - c[time]),
            "smooth_l1": 2 * (np.hypot(error, c[time]) - c[time]),
        }[loss_type]
        total = sum(
            (each[y, x] * weights[index, y, x]).sum()
            for y in range(4)
            for x in range(6)
        )
        np.testing.assert_allclose(found[index], total / each.size, rtol=1e-5)
