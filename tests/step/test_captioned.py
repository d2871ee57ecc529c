"""Pictures that count differently, with prompts of their own, some of them dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.step import dispatch
from ti_flax.step.bank import draw_batch
from ti_flax.step.slots import refill, stack

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2, captioned=True)
DOG = slots.Concept(seed=2, pictures=5, prompts=7, vectors=1)
BIRD = slots.Concept(seed=3, pictures=2, prompts=4, vectors=1, captioned=True)


def train(recipe, *concepts, dispatches=(20,)):
    state, bank = slots.make_run(recipe, *concepts)
    frozen, run = slots.make_frozen(recipe), dispatch.compile_train_steps(recipe)
    for steps in dispatches:
        state, _ = run(state, frozen, bank, steps)
    return state


def rows(state):
    return np.asarray(state.rows["text_encoder"])


@pytest.fixture(scope="module")
def recipe():
    return slots.make_recipe()


@pytest.fixture(scope="module")
def twenty_steps(recipe):
    return train(recipe, CAT)


def test_dispatches_and_a_restart_change_no_bit(recipe, twenty_steps):
    state = train(recipe, CAT, dispatches=[1, 9])
    bank = slots.make_run(recipe, CAT)[1]
    state = jax.device_put(jax.tree.map(np.array, state), bank.moments.sharding)
    run = dispatch.compile_train_steps(recipe)
    state, _ = run(state, slots.make_frozen(recipe), bank, 10)
    jax.tree.map(np.testing.assert_array_equal, state, twenty_steps)


# Tolerances of the following: tests/step/test_train_step.py.
def test_eight_devices_agree_with_one(twenty_steps):
    state = train(slots.make_recipe(8), CAT)
    np.testing.assert_allclose(rows(state), rows(twenty_steps), rtol=0, atol=2e-5)


def test_beside_others_and_refilled_a_concept_learns_as_alone(recipe, twenty_steps):
    beside = rows(train(recipe, DOG, CAT))
    np.testing.assert_allclose(beside[1], rows(twenty_steps)[0], rtol=0, atol=2e-5)
    state, bank = slots.make_run(recipe, CAT, DOG)
    state, bank = refill(state, bank, 0, slots.make_slot(BIRD), recipe.optimizer)
    run = dispatch.compile_train_steps(recipe)
    state, _ = run(state, slots.make_frozen(recipe), bank, 4)
    alone = rows(train(recipe, BIRD, dispatches=[4]))
    np.testing.assert_allclose(rows(state)[0, :1], alone[0], rtol=0, atol=2e-5)


def test_a_slot_without_captions_draws_what_it_drew():
    """What is not given is the same, bit for bit, as what it means."""
    plain = slots.make_slot(DOG)
    spelt = plain._replace(
        pictures=np.arange(5, dtype=np.int32),
        prompt_spans=np.tile(np.int32([0, 7]), (5, 1)),
        caption_dropout_rate=0.0,
    )
    one, other = (stack([slot])[1]._replace(seed_keys=0) for slot in (plain, spelt))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    _, bank = stack([plain])
    drawn = draw_batch(bank, jnp.zeros(1, int), jnp.arange(64), slots.FAMILY)

    def as_before(index):
        key = jax.random.fold_in(jax.random.fold_in(bank.seed_keys[0], 0), index)
        return jax.random.randint(jax.random.split(key, 6)[2], (), 0, 7)

    expected = plain.prompts["text_encoder"][jax.vmap(as_before)(jnp.arange(64))]
    np.testing.assert_array_equal(drawn.ids["text_encoder"][0], expected)


def test_pictures_prompts_and_dropped_captions_come_in_their_shares():
    draws, counts = 8192, np.array([3, 1, 2])
    spans = np.int32([[0, 1], [1, 4], [5, 2]])  # prompts of each; 7 is the empty one
    slot = slots.make_slot(slots.Concept(seed=1, pictures=3, prompts=8, vectors=1))
    ids = np.zeros((8, 77), np.int32) + np.arange(8, dtype=np.int32)[:, None]
    sizes = np.zeros((3, 2, 6), np.int32) + np.int32([0, 1, 2])[:, None, None]
    _, bank = stack(
        [
            slot._replace(
                sizes=sizes,
                prompts={"text_encoder": ids},
                pictures=np.repeat(np.arange(3, dtype=np.int32), counts),
                prompt_spans=spans,
                caption_dropout_rate=0.2,
            ),
            slots.make_slot(DOG),
        ]
    )
    batch = draw_batch(bank, jnp.zeros(2, int), jnp.arange(draws), slots.FAMILY)
    pictures = np.asarray(batch.sizes[0, :, 0])
    prompts = np.asarray(batch.ids["text_encoder"][0, :, 0])

    def near(found, share):
        assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / draws)

    for picture, (first, count) in enumerate(spans):
        share = counts[picture] / counts.sum()
        near(np.mean(pictures == picture), share)
        near(np.mean((pictures == picture) & (prompts == 7)), 0.2 * share)
        own = set(prompts[pictures == picture]) - {7}
        assert own == set(range(first, first + count))
        for prompt in own:
            near(np.mean(prompts == prompt), 0.8 * share / count)
    assert np.isfinite(batch.latents).all()
