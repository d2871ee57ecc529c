import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots
from invariants import agrees_in_parts

from ti_flax.step import dispatch, train_step
from ti_flax.step.bank import draw_batch
from ti_flax.step.slots import Encoded, refill, stack

pytestmark = pytest.mark.usefixtures("networks")

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1)
BIRD = slots.Concept(seed=3, pictures=1, prompts=2, vectors=1)


def rows_of(recipe, concept, steps):
    """What a concept learns alone."""
    state, bank = slots.make_run(recipe, concept)
    train = slots.compiled(recipe)
    state, _ = train(state, slots.make_frozen(recipe), bank, steps)
    return np.asarray(state.rows["text_encoder"])[0, : concept.vectors]


def test_a_refilled_slot_learns_as_alone_and_compiles_nothing():
    recipe = slots.make_recipe()
    state, bank = slots.make_run(recipe, CAT, DOG)
    frozen, train = slots.make_frozen(recipe), dispatch.jit_train_steps(recipe)
    state, _ = train(state, frozen, bank, np.int32(3))
    state, bank = refill(state, bank, 0, *slots.newcomer(recipe, BIRD))
    assert state.step.tolist() == [0, 3]
    state, _ = train(state, frozen, bank, np.int32(4))
    assert state.step.tolist() == [4, 7]
    assert train._cache_size() == 1
    rows = np.asarray(state.rows["text_encoder"])
    # Another batch size is another order of summation; see test_train_step.py.
    np.testing.assert_allclose(rows[0, :1], rows_of(recipe, BIRD, 4), atol=2e-5)
    np.testing.assert_allclose(rows[1, :1], rows_of(recipe, DOG, 7), atol=2e-5)
    # Of the cat, nothing is left.
    np.testing.assert_array_equal(rows[0, 1], np.zeros(slots.WIDTH))
    for moment in jax.tree.leaves(state.opt_state):
        if moment.ndim == 3:
            np.testing.assert_array_equal(moment[0, 1], np.zeros(slots.WIDTH))


def test_accumulated_parts_equal_one_batch():
    whole = slots.train(slots.make_recipe(), CAT, dispatches=[20])
    agrees_in_parts(slots.make_recipe, CAT, whole, devices=1, batch=2, parts=4)


@pytest.mark.parametrize("count", range(5))
def test_each_slot_has_learning_rates_of_its_own(count):
    """One step at any count is AdamW's with the rate of that count."""
    recipe, rates = slots.make_recipe(), [(0.1,), (0.4, 0.2, 0.3)]
    concepts = [
        concept._replace(rates=each)
        for concept, each in zip((CAT, DOG), rates, strict=True)
    ]
    state, bank = slots.make_run(recipe, *concepts)
    state = state._replace(step=jnp.int32([count, count]))
    random = np.random.default_rng(0)
    gradient = random.normal(size=(2, 2, slots.WIDTH)).astype(np.float32)
    new, metrics = train_step.apply_gradients(
        state, jnp.ones(2), {"text_encoder": jnp.asarray(gradient)}, bank, recipe
    )
    expected = [each[min(count, len(each) - 1)] for each in rates]
    np.testing.assert_allclose(metrics.learning_rate, expected)
    moved = np.asarray(new.rows["text_encoder"] - state.rows["text_encoder"])
    # Adam's first update is the gradient's sign.
    for index, concept in enumerate(concepts):
        own = gradient[index, : concept.vectors]
        np.testing.assert_allclose(
            moved[index, : concept.vectors], -expected[index] * np.sign(own), rtol=1e-4
        )


def test_stacked_concepts_keep_what_is_theirs():
    rows, bank = stack([slots.make_slot(concept) for concept in (CAT, DOG)])
    (bucket,) = bank.buckets
    assert bucket.num_pictures.tolist() == [3, 2]
    assert bank.num_prompts.tolist() == [
        5,
        4,
    ]
    assert bank.row_mask.tolist() == [[True, True], [True, False]]
    for index, concept in enumerate((CAT, DOG)):
        slot = slots.make_slot(concept)
        found = bucket.moments[index, : concept.pictures]
        np.testing.assert_array_equal(found, slot.buckets[0].moments)
        found = bank.prompts["text_encoder"][index, : concept.prompts]
        np.testing.assert_array_equal(found, slot.prompts["text_encoder"])
        found = rows["text_encoder"][index, : concept.vectors]
        np.testing.assert_array_equal(found, slot.rows["text_encoder"])


def test_a_concept_that_needs_more_room_is_no_refill():
    recipe = slots.make_recipe()
    state, bank = slots.make_run(recipe, DOG)
    with pytest.raises(ValueError, match="negative"):
        refill(state, bank, 0, *slots.newcomer(recipe, CAT))


def test_sizes_go_with_the_picture_and_its_mirror_image():
    slot = slots.make_slot(CAT._replace(pictures=2))
    sizes = np.arange(2 * 2 * 6, dtype=np.int32).reshape(2, 2, 6)
    moments = np.broadcast_to(
        np.arange(4, dtype=np.float32).reshape(2, 2, 1, 1, 1),
        slot.buckets[0].moments.shape,
    )
    # A log-variance of -30: the sample is the mean, which is the view's number.
    moments = np.concatenate(
        [moments[..., :4], np.full_like(moments[..., 4:], -30)], -1
    )
    _, bank = stack([slot._replace(buckets=[Encoded(moments, sizes)])])
    batch = draw_batch(bank, jnp.zeros(1, int), jnp.arange(64), slots.FAMILY)
    latents = np.asarray(batch.latents[0, :, 0, 0, 0])
    views = np.rint(latents / slots.FAMILY.scale.factor).astype(int)
    assert set(views) == {0, 1, 2, 3}
    np.testing.assert_array_equal(batch.sizes[0], sizes.reshape(4, 6)[views])
