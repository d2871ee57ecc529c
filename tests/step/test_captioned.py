"""Pictures that count differently, with prompts of their own, some of them dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import slots

from ti_flax.step.bank import draw_batch
from ti_flax.step.slots import stack

DOG = slots.Concept(seed=2, pictures=5, prompts=7, vectors=1)


def test_a_slot_without_captions_draws_what_it_drew():
    """What is not given is the same, bit for bit, as what it means."""
    plain = slots.make_slot(DOG)
    (encoded,) = plain.buckets
    encoded = encoded._replace(
        pictures=np.arange(5, dtype=np.int32),
        prompt_spans=np.tile(np.int32([0, 7]), (5, 1)),
    )
    spelt = plain._replace(buckets=[encoded], caption_dropout_rate=0.0)
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
    encoded = slot.buckets[0]._replace(
        sizes=sizes,
        pictures=np.repeat(np.arange(3, dtype=np.int32), counts),
        prompt_spans=spans,
    )
    _, bank = stack(
        [
            slot._replace(
                buckets=[encoded],
                prompts={"text_encoder": ids},
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
