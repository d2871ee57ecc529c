"""A step with every option of the loss and the noise on keeps what a step keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots
from invariants import agrees_beside, agrees_in_parts, rows_of

from ti_flax.diffusion import timestep_tables
from ti_flax.diffusion.objective import PLAIN, Objective
from ti_flax.step import train_step
from ti_flax.step.bank import draw_batch
from ti_flax.step.fixed_loss import compile_fixed_loss

pytestmark = pytest.mark.usefixtures("networks")

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1)
ABAR = np.asarray(slots.FAMILY.process.alphas_cumprod)
SHARES = timestep_tables.biased_frequencies(1000, slice(600, 800), 3.0, slice(50, 900))
EVERY = Objective(
    loss_type="huber",
    huber_c=jnp.asarray(
        timestep_tables.huber_thresholds(ABAR, "snr", 0.1), jnp.float32
    ),
    weights=jnp.asarray(
        timestep_tables.min_snr_weights(timestep_tables.snr_of(ABAR), 5.0, v=False),
        jnp.float32,
    ),
    cumulative=jnp.asarray(np.minimum(np.cumsum(SHARES), 1), jnp.float32),
    noise_offset=0.1,
    multires_noise_iterations=6,
    multires_noise_discount=0.3,
    ip_noise_gamma=0.1,
)


def make_recipe(*arguments, **settings):
    return slots.make_recipe(*arguments, **settings)._replace(objective=EVERY)


@pytest.fixture(scope="module")
def twenty_steps(networks):
    return slots.train(make_recipe(), CAT, dispatches=[20])


def test_ten_and_ten_steps_equal_twenty_bit_for_bit(twenty_steps):
    resumed = slots.train(make_recipe(), CAT, dispatches=[10, 10], restarted=True)
    jax.tree.map(np.testing.assert_array_equal, resumed, twenty_steps)


def test_the_options_change_what_is_learned(twenty_steps):
    plain = slots.train(slots.make_recipe(), CAT, dispatches=[20])
    assert np.abs(rows_of(plain) - rows_of(twenty_steps)).max() > 1e-2


@pytest.mark.parametrize(
    ("devices", "batch", "parts"),
    [
        (8, 2, 4),
        pytest.param(8, 8, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_devices_and_parts_agree_with_one(twenty_steps, devices, batch, parts):
    agrees_in_parts(make_recipe, CAT, twenty_steps, devices, batch, parts)


def test_a_concept_beside_another_learns_what_it_learns_alone(twenty_steps):
    agrees_beside(make_recipe, DOG, CAT, twenty_steps)


def draw(bank, steps, examples, objective):
    return jax.jit(
        lambda steps, examples: draw_batch(
            bank, steps, examples, slots.FAMILY, objective
        )
    )(steps, examples)


def test_an_example_is_a_function_of_seed_step_and_index():
    _, bank = slots.make_run(make_recipe(), CAT, DOG)
    whole = draw(bank, jnp.array([4, 9]), jnp.arange(8), EVERY)
    tail = draw(bank, jnp.array([4, 9]), jnp.arange(5, 8), EVERY)
    # Sums over a picture are vectorised otherwise: the last digit.
    jax.tree.map(
        lambda w, t: np.testing.assert_allclose(w[:, 5:], t, rtol=1e-5, atol=1e-6),
        whole,
        tail,
    )
    other = draw(bank, jnp.array([5, 9]), jnp.arange(8), EVERY)
    assert not np.any(whole.noise[0] == other.noise[0])
    np.testing.assert_array_equal(whole.noise[1], other.noise[1])


def test_options_take_their_numbers_from_keys_of_their_own():
    """Picture, prompt and posterior sample are those of a plain run, to the bit."""
    _, bank = slots.make_run(make_recipe(), CAT, DOG)
    steps, examples = jnp.array([4, 9]), jnp.arange(64)
    plain = draw(bank, steps, examples, PLAIN)
    every = draw(bank, steps, examples, EVERY)
    for name in ("latents", "ids", "sizes"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(plain, name), getattr(every, name)
        )
    assert plain.input_noise is None
    only = draw(bank, steps, examples, Objective(ip_noise_gamma=0.1))
    np.testing.assert_array_equal(only.noise, plain.noise)
    np.testing.assert_array_equal(only.times, plain.times)
    # None of the numbers is drawn twice, as they would be by a key of the six.
    more = np.asarray(only.input_noise - only.noise) / 0.1
    for drawn in (plain.noise, plain.latents):
        correlation = np.corrcoef(np.asarray(drawn).ravel(), more.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(more.size)
    times = np.asarray(every.times)
    assert times.min() >= 50 and times.max() < 900


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_steps_loss_is_that_of_the_formulas(prediction_type):
    family = slots.FAMILY
    process = family.process._replace(prediction_type=prediction_type)
    recipe = make_recipe()
    family = type(family)(**{**vars(family), "process": process})
    recipe = recipe._replace(family=family)
    state, bank = slots.make_run(recipe, CAT)
    frozen = slots.make_frozen(recipe)
    batch = draw_batch(bank, state.step, jnp.arange(8), family, EVERY)
    found = train_step.example_losses(state.rows, frozen, batch, recipe)[0]

    abar = ABAR[np.asarray(batch.times[0])].astype(np.float64)[:, None, None, None]
    x0, eps, made_with = (
        np.asarray(array[0], np.float64)
        for array in (batch.latents, batch.noise, batch.input_noise)
    )
    # The input is corrupted with the noise that has more; the target has not.
    x_t = abar**0.5 * x0 + (1 - abar) ** 0.5 * made_with
    target = eps
    if prediction_type == "v_prediction":
        target = abar**0.5 * eps - (1 - abar) ** 0.5 * x0
    context = family.parts["text_encoder"].apply(
        {"params": frozen["text_encoder"]},
        batch.ids["text_encoder"][0],
        jnp.repeat(state.rows["text_encoder"], 8, axis=0),
    )
    predicted = family.parts["unet"].apply(
        {"params": frozen["unet"]},
        jnp.asarray(x_t, jnp.float32),
        batch.times[0],
        context,
    )
    error = np.asarray(predicted, np.float64) - target
    c = 0.9 / (1 + ((1 - abar) / abar) ** 0.5) ** 2 + 0.1
    huber = (2 * c * (np.sqrt(error**2 + c**2) - c)).mean(axis=(1, 2, 3))
    snr = (abar / (1 - abar)).ravel()
    np.testing.assert_allclose(found, huber * np.minimum(snr, 5) / snr, rtol=1e-4)


@pytest.mark.parametrize("batch", [3, 8])
def test_the_fixed_loss_is_plain_whatever_the_run_learns_by(batch):
    plain, every = slots.make_recipe(batch=batch), make_recipe(batch=batch)
    state, bank = slots.make_run(plain, CAT, DOG)
    frozen = slots.make_frozen(plain)
    expected, found = (
        compile_fixed_loss(recipe)(state.rows, frozen, bank)
        for recipe in (plain, every)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Its quarters are means over the examples that lie in them.
    count = batch * -(-16 // batch)
    quarter = np.array([int(4 * (i + 0.5) / count) for i in range(count)])
    counts = np.bincount(quarter)
    assert len(counts) == 4 and counts.min() >= 4
    np.testing.assert_allclose(
        (np.asarray(found.quarters) * counts).sum(axis=1) / count, found.mean, rtol=1e-5
    )
