"""The loss on a fixed set of examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.step.bank import draw_batch
from ti_flax.step.fixed_loss import compile_fixed_loss

pytestmark = pytest.mark.usefixtures("networks")


def test_the_fixed_loss_is_that_of_16_examples_at_even_timesteps():
    recipe = slots.make_recipe(devices=8, batch=8)
    concepts = [
        slots.Concept(seed=3, pictures=2, prompts=3, vectors=1),
        slots.Concept(seed=4, pictures=3, prompts=2, vectors=2),
    ]
    state, bank = slots.make_run(recipe, *concepts)
    frozen = slots.make_frozen(recipe)
    fixed_loss = compile_fixed_loss(recipe)
    found = fixed_loss(state.rows, frozen, bank)
    again = fixed_loss(state.rows, frozen, bank)
    jax.tree.map(np.testing.assert_array_equal, found, again)

    # The same by the formulas.
    never = jnp.full(2, 2**31 - 1)
    batch = draw_batch(bank, never, jnp.arange(16), slots.FAMILY)
    timesteps = [round(1000 * (2 * i + 1) / 32 - 0.5) for i in range(16)]
    assert timesteps[0] == 31 and timesteps[-1] == 968
    abar = recipe.family.process.alphas_cumprod[jnp.array(timesteps)][
        :, None, None, None
    ]

    @jax.jit
    def predict(rows, latents, noise, ids):
        context = slots.FAMILY.parts["text_encoder"].apply(
            {"params": frozen["text_encoder"]}, ids, jnp.stack([rows] * 16)
        )
        x_t = abar**0.5 * latents + (1 - abar) ** 0.5 * noise
        return slots.FAMILY.parts["unet"].apply(
            {"params": frozen["unet"]}, x_t, jnp.array(timesteps), context
        )

    for slot in range(2):
        latents, noise = batch.latents[slot], batch.noise[slot]
        ids = batch.ids["text_encoder"][slot]
        predicted = predict(state.rows["text_encoder"][slot], latents, noise, ids)
        squared = (np.asarray(predicted) - np.asarray(noise)) ** 2
        np.testing.assert_allclose(found.mean[slot], np.mean(squared), rtol=1e-5)
        # Timesteps 31 to 218 of 1000, and so on.
        quarters = squared.reshape(4, -1).mean(axis=1)
        np.testing.assert_allclose(found.quarters[slot], quarters, rtol=1e-5)
