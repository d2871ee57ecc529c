"""Pictures of the class: nothing is learned from prompts that lack the new word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.diffusion.objective import Objective
from ti_flax.step import train_step
from ti_flax.step.bank import draw_batch
from ti_flax.step.slots import stack
from ti_flax.step.state import init_state

pytestmark = pytest.mark.usefixtures("networks")

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
OBJECTIVES = {
    "plain": Objective(),
    "every kind of noise": Objective(
        noise_offset=0.1, multires_noise_iterations=6, ip_noise_gamma=0.1
    ),
}


def without_word(slot):
    """The slot with prompts of vocabulary words alone."""
    ids = slot.prompts["text_encoder"]
    words = np.where(ids < slots.VOCABULARY, ids, ids % slots.VOCABULARY)
    assert (words < slots.VOCABULARY).all() and not (words == ids).all()
    return slot._replace(prompts={"text_encoder": words.astype(np.int32)})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_to_the_vectors_is_exactly_zero(objective, masked):
    recipe = slots.make_recipe()._replace(objective=OBJECTIVES[objective])
    frozen = slots.make_frozen(recipe)

    def gradients(slot):
        rows, bank = stack([slot])
        batch = draw_batch(
            bank, jnp.zeros(1, int), jnp.arange(8), slots.FAMILY, recipe.objective
        )
        loss, grads = train_step.gradients(rows, frozen, batch, recipe)
        return np.asarray(loss), np.asarray(grads["text_encoder"])

    slot = slots.make_slot(CAT._replace(masked=masked))
    loss, found = gradients(without_word(slot))
    assert loss > 0
    np.testing.assert_array_equal(found, np.zeros_like(found))
    _, of_the_word = gradients(slot)
    assert np.all(np.abs(of_the_word).max(axis=-1) > 1e-6)


def test_steps_on_them_leave_the_vectors_as_they_are():
    recipe = slots.make_recipe()
    rows, bank = stack([without_word(slots.make_slot(CAT))])
    before = jax.tree.map(np.array, rows)
    state = init_state(rows, recipe.optimizer)
    run = slots.compiled(recipe)
    state, metrics = run(state, slots.make_frozen(recipe), bank, 3)
    jax.tree.map(np.testing.assert_array_equal, state.rows, before)
    assert np.all(metrics.loss[:3] > 0) and not np.any(metrics.grad_norm)
