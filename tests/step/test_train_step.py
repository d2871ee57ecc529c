import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import slots

from ti_flax.step import dispatch
from ti_flax.step.optimizer import (
    adamw,
    learning_rate_schedule,
    only_active_rows,
    rates_of_steps,
)

CAT = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
DOG = slots.Concept(seed=2, pictures=2, prompts=4, vectors=1)


def train(recipe, *concepts, dispatches):
    """Rows [S, K, D] after the dispatches, the state, and each step's metrics."""
    state, bank = slots.make_run(recipe, *concepts)
    frozen = slots.make_frozen(recipe)
    run = slots.compiled(recipe)
    history = []
    for num_steps in dispatches:
        state, metrics = run(state, frozen, bank, num_steps)
        metrics = jax.device_get(metrics)
        history += [
            jax.tree.map(lambda m, i=i: m[i], metrics) for i in range(num_steps)
        ]
    return np.asarray(state.rows["text_encoder"]), state, history


@pytest.fixture(scope="module")
def one_device():
    return slots.make_recipe()


@pytest.fixture(scope="module")
def twenty_steps(one_device):
    return train(one_device, CAT, dispatches=[20])


def test_only_learned_rows_change(one_device):
    state, bank = slots.make_run(one_device, CAT)
    frozen = slots.make_frozen(one_device)
    before = jax.tree.map(np.array, (frozen, bank._replace(seed_keys=0)))
    rows = np.array(state.rows["text_encoder"])
    state, _ = slots.compiled(one_device)(state, frozen, bank, 5)
    jax.tree.map(
        np.testing.assert_array_equal, before, (frozen, bank._replace(seed_keys=0))
    )
    assert np.all(rows != state.rows["text_encoder"])


def test_the_state_is_rows_two_moments_and_counters(one_device):
    state, _ = slots.make_run(one_device, CAT, DOG)
    shapes = sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(state))
    slots_, vectors = 2, 2
    rows = ((slots_, vectors, slots.WIDTH), "float32")
    counters = [shape for shape in shapes if shape != rows]
    assert shapes.count(rows) == 3
    assert counters and set(counters) == {((slots_,), "int32")}


def test_ten_and_ten_steps_equal_twenty_bit_for_bit(one_device, twenty_steps):
    state, bank = slots.make_run(one_device, CAT)
    frozen = slots.make_frozen(one_device)
    state, _ = slots.compiled(one_device)(state, frozen, bank, 10)
    # What a checkpoint does: through host memory and a newly compiled step.
    state = jax.device_put(jax.tree.map(np.array, state), bank.row_mask.sharding)
    state, _ = dispatch.compile_train_steps(one_device)(state, frozen, bank, 10)
    jax.tree.map(np.testing.assert_array_equal, state, twenty_steps[1])


def test_dispatch_length_changes_no_bit(one_device, twenty_steps):
    rows, state, history = train(one_device, CAT, dispatches=[1] * 10 + [7, 3])
    np.testing.assert_array_equal(rows, twenty_steps[0])
    jax.tree.map(np.testing.assert_array_equal, state, twenty_steps[1])
    jax.tree.map(np.testing.assert_array_equal, history, twenty_steps[2])


# On 3, 5, 6 and 7 devices the batch of 8 is filled up.
@pytest.mark.parametrize(
    "devices",
    [3, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5, 6, 7))],
)
def test_several_devices_agree_with_one(twenty_steps, devices):
    rows, _, history = train(slots.make_recipe(devices), CAT, dispatches=[20])
    # Sums over the batch associate otherwise; Adam's first steps are +-lr whatever the
    # gradient's size, so that rounding enters relative to each gradient element.
    np.testing.assert_allclose(rows, twenty_steps[0], rtol=0, atol=2e-5)
    losses, expected = ([h.loss for h in hs] for hs in (history, twenty_steps[2]))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_concept_beside_another_learns_what_it_learns_alone(one_device, twenty_steps):
    rows, _, history = train(one_device, DOG, CAT, dispatches=[20])
    # Tolerance as above: another batch size is another order of summation.
    np.testing.assert_allclose(rows[1], twenty_steps[0][0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(
        [h.loss[1] for h in history], [h.loss[0] for h in twenty_steps[2]], rtol=1e-5
    )


def test_padded_rows_and_stopped_slots_keep_every_bit():
    recipe = slots.make_recipe(weight_decay=0.1)
    stopped = DOG._replace(steps=3)
    rows, state, _ = train(recipe, stopped, CAT, dispatches=[3])
    moments = jax.tree.map(np.array, state.opt_state)
    after, later, _ = train(recipe, stopped, CAT, dispatches=[3, 4])
    np.testing.assert_array_equal(after[0], rows[0])
    assert not np.array_equal(after[1], rows[1])
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(new[0], old[0]),
        later.opt_state,
        moments,
    )
    np.testing.assert_array_equal(later.step, [3, 7])
    padding = slots.make_run(recipe, stopped, CAT)[0].rows["text_encoder"][0, 1]
    np.testing.assert_array_equal(after[0, 1], padding)
    for moment in jax.tree.leaves(later.opt_state):
        if moment.ndim == 3:
            np.testing.assert_array_equal(moment[0, 1], np.zeros(slots.WIDTH))


def test_an_example_is_a_function_of_seed_step_and_index(one_device):
    _, bank = slots.make_run(one_device, CAT, DOG)
    whole = slots.draw(bank, jnp.array([4, 9]), jnp.arange(8))
    tail = slots.draw(bank, jnp.array([4, 9]), jnp.arange(5, 8))
    jax.tree.map(lambda w, t: np.testing.assert_array_equal(w[:, 5:], t), whole, tail)
    other_step = slots.draw(bank, jnp.array([5, 9]), jnp.arange(8))
    assert not np.any(whole.noise[0] == other_step.noise[0])
    np.testing.assert_array_equal(whole.noise[1], other_step.noise[1])


def test_draws_cover_every_real_picture_prompt_and_timestep(one_device):
    _, bank = slots.make_run(one_device, CAT, DOG)
    batch = slots.draw(bank, jnp.array([0, 0]), jnp.arange(4096))
    assert np.isfinite(batch.latents).all()
    for slot, concept in enumerate((CAT, DOG)):
        prompts = {tuple(ids) for ids in np.asarray(batch.ids["text_encoder"][slot])}
        known = np.asarray(bank.prompts["text_encoder"][slot, : concept.prompts])
        real = {tuple(ids) for ids in known}
        assert prompts == real
    timesteps = np.asarray(batch.times)
    assert timesteps.min() == 0 and timesteps.max() == 999
    # The standard error of the mean of 8192 uniform numbers is 3.2; noise: 0.003.
    assert abs(timesteps.mean() - 499.5) < 16
    noise = np.asarray(batch.noise)
    assert abs(noise.mean()) < 0.015 and abs(noise.std() - 1) < 0.015
    # Independent draws: posterior sample, noise and timestep do not go together.
    assert abs(np.corrcoef(batch.latents.ravel(), noise.ravel())[0, 1]) < 0.01


def test_posterior_samples_have_the_moments_they_are_drawn_from(one_device):
    _, bank = slots.make_run(one_device, CAT._replace(pictures=1))
    (bucket,) = bank.buckets
    bucket = bucket._replace(moments=bucket.moments[:, :, :1])
    bank = bank._replace(buckets=(bucket,))
    batch = slots.draw(bank, jnp.array([0]), jnp.arange(8192))
    mean, logvar = np.split(np.asarray(bucket.moments[0, 0, 0]), 2, axis=-1)
    latents = np.asarray(batch.latents[0]) / slots.FAMILY.scale.factor
    std = np.exp(logvar / 2)
    # Five standard errors of a mean and of a standard deviation of 8192 samples.
    assert np.all(np.abs(latents.mean(0) - mean) < 5 * std / np.sqrt(8192))
    assert np.all(np.abs(latents.std(0) - std) < 5 * std / np.sqrt(2 * 8192))


def test_clipping_bounds_the_norm_over_active_rows_only():
    optimizer = only_active_rows(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    )
    rows = {"text_encoder": jnp.zeros((2, 3))}
    grads = {"text_encoder": jnp.array([[3.0, 0.0, 4.0], [1e6, 1e6, 1e6]])}
    active = jnp.array([True, False])
    updates, _ = optimizer.update(grads, optimizer.init(rows), rows, active=active)
    np.testing.assert_allclose(
        updates["text_encoder"], [[-0.6, 0.0, -0.8], [0, 0, 0]], rtol=1e-6
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_pytorch(weight_decay):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    rows = random.normal(size=(2, 8)).astype(np.float32)
    ours = adamw(0.9, 0.99, 1e-6, weight_decay, None)
    theirs = torch.nn.Parameter(torch.tensor(rows))
    optimizer = torch.optim.AdamW(
        [theirs], 1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=weight_decay
    )
    params = {"text_encoder": jnp.asarray(rows)}
    state = ours.init(params)
    for _ in range(20):
        grad = random.normal(size=rows.shape).astype(np.float32)
        theirs.grad = torch.tensor(grad)
        optimizer.step()
        updates, state = ours.update(
            {"text_encoder": jnp.asarray(grad)},
            state,
            params,
            active=jnp.ones(2, bool),
            learning_rate=jnp.float32(1e-2),
        )
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        params["text_encoder"], theirs.detach().numpy(), rtol=1e-5, atol=1e-7
    )


SCHEDULES = [
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_schedules_equal_diffusers(name, warmup):
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("diffusers.optimization")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    theirs = optimization.get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=40,
        num_cycles=3 if name == "cosine_with_restarts" else 1,
        power=2.0,
    )
    ours = learning_rate_schedule(name, 0.5, warmup, 40, num_cycles=3, power=2.0)
    if name == "cosine":
        # diffusers' default there is half a cycle, its get_scheduler passes one on.
        theirs = optimization.get_cosine_schedule_with_warmup(optimizer, warmup, 40)
    for count in range(40):
        # PyTorch computes in float64, we in float32: near a zero only absolutely equal.
        expected = theirs.get_last_lr()[0]
        rate = float(ours(jnp.int32(count)))
        assert rate == pytest.approx(expected, rel=1e-5, abs=1e-6), count
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("decay", [0, 1, 10, 33])
def test_warmup_stable_decay_equals_transformers(warmup, decay):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    theirs = transformers.get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=40, decay_type="linear"
    )
    found = rates_of_steps(
        learning_rate_schedule(
            "warmup_stable_decay", 0.5, warmup, 40, decay_steps=decay
        ),
        *("warmup_stable_decay", warmup, 40),
    )
    expected = []
    for _ in range(40):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_starts_and_ends_where_it_should(name):
    rate = learning_rate_schedule(name, 0.5, 10, 100, num_cycles=2)
    at = [float(rate(jnp.int32(count))) for count in (0, 5, 10, 99)]
    if name == "constant":
        assert at == [0.5] * 4
        return
    assert at[:3] == pytest.approx([0.0, 0.25, 0.5])
    assert (at[3] == 0.5) == (name == "constant_with_warmup")


def test_a_dispatch_longer_than_its_buffers_is_refused(one_device):
    run = dispatch.compile_train_steps(one_device)
    with pytest.raises(ValueError, match="129"):
        run(*slots.make_arguments(), dispatch.MAX_STEPS_A_DISPATCH + 1)
