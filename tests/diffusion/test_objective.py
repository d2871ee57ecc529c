"""The objective of a run: losses by formula, times by frequency, noise by variance."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.diffusion.objective import LOSSES, PLAIN, Objective
from ti_flax.diffusion.process import Ddpm, mse

T = 40
RANDOM = np.random.default_rng(0)
PREDICTION, TARGET = RANDOM.normal(size=(2, 6, 4, 4, 3)).astype(np.float32)
TIMES = jnp.array([0, 7, 12, 20, 38, 39])
C = np.linspace(1.0, 0.05, T).astype(np.float32)
PROCESS = Ddpm(jnp.linspace(0.99, 0.01, T), "epsilon")


def losses(objective, prediction=PREDICTION, target=TARGET):
    return np.asarray(
        objective.losses(jnp.asarray(prediction), jnp.asarray(target), TIMES)
    )


def test_a_plain_objective_is_squared_error_to_the_bit():
    np.testing.assert_array_equal(
        losses(PLAIN), mse(*map(jnp.asarray, (PREDICTION, TARGET)))
    )


def test_each_loss_has_its_name_in_the_configuration():
    names = ObjectiveKeys.model_fields["loss_type"].annotation
    assert get_args(names) == tuple(LOSSES)


def test_weights_are_by_timestep():
    weights = np.arange(T, dtype=np.float32)
    objective = Objective(weights=jnp.asarray(weights))
    np.testing.assert_allclose(losses(objective), losses(PLAIN) * weights[TIMES])


@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
def test_huber_losses_are_kohyas(loss_type):
    torch = pytest.importorskip("torch")
    objective = Objective(loss_type, jnp.asarray(C))
    error = torch.tensor(PREDICTION, dtype=torch.float64) - torch.tensor(TARGET)
    error.requires_grad_()
    c = torch.tensor(C[TIMES], dtype=torch.float64).reshape(-1, 1, 1, 1)
    expected = 2 * (torch.sqrt(error**2 + c**2) - c)
    if loss_type == "huber":
        expected = c * expected
    expected = expected.mean(dim=(1, 2, 3))
    np.testing.assert_allclose(losses(objective), expected.detach().numpy(), rtol=1e-5)
    # And so is what is learned from.
    expected.sum().backward()
    gradient = jax.grad(
        lambda p: objective.losses(p, jnp.asarray(TARGET), TIMES).sum()
    )(jnp.asarray(PREDICTION))
    np.testing.assert_allclose(gradient, error.grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("size", "large"), [(1e-4, False), (1e3, True)])
def test_huber_losses_are_those_of_pytorch_where_errors_are_small_or_large(size, large):
    torch = pytest.importorskip("torch")
    error = torch.tensor(size * np.sign(PREDICTION))
    for t, c in zip(range(6), C[TIMES], strict=True):
        c = float(c)
        zero = torch.zeros_like(error[t])
        huber = torch.nn.functional.huber_loss(error[t], zero, delta=c)
        smooth = torch.nn.functional.smooth_l1_loss(error[t], zero, beta=c)
        ours = [
            losses(Objective(name, jnp.asarray(C)), error.numpy(), 0 * TARGET)[t]
            for name in ("huber", "smooth_l1")
        ]
        # PyTorch's turn at once from e^2 / 2 to c (|e| - c / 2), ours gradually; both
        # of ours are twice theirs.
        np.testing.assert_allclose(ours[0], 2 * huber, rtol=2e-3 if large else 1e-5)
        np.testing.assert_allclose(ours[1], 2 * smooth, rtol=2e-3 if large else 1e-5)


def test_no_error_has_no_loss_and_no_gradient():
    for name in ("huber", "smooth_l1"):
        objective = Objective(name, jnp.full(T, 1e-6))

        def total(prediction, objective=objective):
            return objective.losses(prediction, jnp.asarray(TARGET), TIMES).sum()

        loss, gradient = jax.value_and_grad(total)(jnp.asarray(TARGET))
        assert loss == 0 and not np.any(gradient)


def draw_times(objective, count=200_000):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: objective.draw_times(key, PROCESS))(keys))


@pytest.mark.parametrize(
    "shares",
    [
        np.ones(T),
        np.r_[np.full(10, 5.0), np.ones(30)],
        np.r_[np.ones(30), np.full(10, 0.25)],
        np.r_[np.zeros(11), np.ones(5), np.full(5, 3.0), np.zeros(19)],
        np.eye(T)[17],
        np.eye(T)[0],
        np.eye(T)[T - 1],
    ],
    ids=["all", "earlier", "later", "range", "one", "the first", "the last"],
)
def test_times_are_drawn_as_often_as_their_share_says(shares):
    shares = shares / shares.sum()
    cumulative = jnp.asarray(np.minimum(np.cumsum(shares), 1), jnp.float32)
    times = draw_times(Objective(cumulative=cumulative))
    found = np.bincount(times, minlength=T)
    assert len(found) == T
    assert not found[shares == 0].any()
    # Five standard deviations of a binomial count.
    count = len(times)
    bound = 5 * np.sqrt(count * shares * (1 - shares)) + 1
    assert np.all(np.abs(found - count * shares) < bound)


def test_a_plain_objective_draws_as_the_process_does():
    keys = jax.random.split(jax.random.key(0), 1000)
    expected = jax.vmap(PROCESS.draw_times)(keys)
    np.testing.assert_array_equal(draw_times(PLAIN, 1000), expected)


def shape_noise(objective, count=2000, shape=(8, 8, 4)):
    key = jax.random.key(5)
    white = jax.random.normal(key, (count, *shape))
    return white, *jax.vmap(objective.shape_noise)(jax.random.split(key, count), white)


def test_plain_noise_is_handed_on_to_the_bit():
    white, noise, made_with = shape_noise(PLAIN, 3)
    np.testing.assert_array_equal(noise, white)
    assert made_with is None


def test_the_input_has_more_noise_than_the_target():
    white, noise, made_with = shape_noise(Objective(ip_noise_gamma=0.3))
    np.testing.assert_array_equal(noise, white)
    more = np.asarray(made_with - noise) / 0.3
    error = 5 / np.sqrt(more.size)
    assert abs(more.mean()) < error and abs(more.std() - 1) < error
    assert abs(np.corrcoef(more.ravel(), np.asarray(noise).ravel())[0, 1]) < error


def test_options_together_are_in_kohyas_order():
    """Offset, then coarser grids and the scaling to 1, then the input's own noise."""
    options = {
        "noise_offset": 0.5,
        "multires_noise_iterations": 4,
        "multires_noise_discount": 0.4,
        "ip_noise_gamma": 0.2,
    }
    _, noise, made_with = shape_noise(Objective(**options))
    noise, made_with = np.asarray(noise), np.asarray(made_with)
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3), ddof=1), 1, rtol=1e-4)
    assert (made_with - noise).std() == pytest.approx(0.2, rel=0.02)
    # The draws of one option do not depend on the others.
    for name in ("noise_offset", "ip_noise_gamma"):
        white, alone, input_alone = shape_noise(Objective(**{name: options[name]}))
        if name == "ip_noise_gamma":
            np.testing.assert_allclose(
                input_alone - alone, made_with - noise, atol=1e-5
            )
        else:
            offset = np.asarray(alone - white).mean(axis=(1, 2)).ravel()
            means = noise.mean(axis=(1, 2)).ravel()
            assert np.corrcoef(offset, means)[0, 1] > 0.5
