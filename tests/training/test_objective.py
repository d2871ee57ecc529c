"""From keys to the objective of a run on a model."""

import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.diffusion.objective import PLAIN
from ti_flax.diffusion.process import Ddpm
from ti_flax.runtime.errors import UserError
from ti_flax.training.objective import make_objective

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True}
V = {"prediction_type": "v_prediction"}


def objective_of(scheduler=SD, **keys):
    return make_objective(ObjectiveKeys(**keys), Ddpm.from_json(SD | scheduler), 12)


def snr_of(scheduler):
    abar = np.asarray(Ddpm.from_json(SD | scheduler).alphas_cumprod, np.float64)
    return abar / (1 - abar)


def test_nothing_asked_for_is_the_plain_objective():
    assert objective_of() == PLAIN
    assert objective_of(max_timestep=1000, timestep_bias_multiplier=3) == PLAIN


@pytest.mark.parametrize("scheduler", [{}, ZERO], ids=["", "zero SNR"])
def test_weights_are_of_what_the_model_predicts(scheduler):
    snr = snr_of(scheduler)
    eps = objective_of(scheduler, snr_gamma=5).weights
    expected = np.minimum(snr, 5) / np.where(snr > 0, snr, 1)
    expected[snr == 0] = 1
    np.testing.assert_allclose(eps, expected, rtol=1e-5)
    v = objective_of(scheduler | V, min_snr_gamma=5).weights
    np.testing.assert_allclose(v, np.minimum(snr, 5) / (snr + 1), rtol=1e-5)
    debiased = objective_of(scheduler | V, debiased_estimation_loss=True).weights
    capped = np.minimum(snr, 1000)
    np.testing.assert_allclose(debiased, 1 / (capped + 1), rtol=1e-5)
    # Two weights are multiplied, as kohya does.
    both = objective_of(
        scheduler | V, snr_gamma=5, scale_v_pred_loss_like_noise_pred=True
    ).weights
    scale = capped / (capped + 1)
    np.testing.assert_allclose(both, np.asarray(v) * scale, rtol=1e-5)


def test_debiased_weights_end_before_pure_noise():
    keys = {"debiased_estimation_loss": True}
    weights = objective_of(ZERO, **keys, max_timestep=999).weights
    expected = np.minimum(snr_of(ZERO)[:999], 1000) ** -0.5
    np.testing.assert_allclose(weights[:999], expected, rtol=1e-4)
    with pytest.raises(UserError, match="expected max_timestep 999 or less"):
        objective_of(ZERO, **keys)


def test_huber_thresholds_are_there_with_a_huber_loss_alone():
    assert objective_of(huber_c=0.5).huber_c is None
    for name in ("huber", "smooth_l1"):
        objective = objective_of(loss_type=name, huber_schedule="constant", huber_c=0.5)
        assert objective.loss_type == name
        np.testing.assert_array_equal(objective.huber_c, jnp.full(1000, 0.5))


def shares_of(**keys):
    cumulative = np.asarray(objective_of(**keys).cumulative, np.float64)
    assert cumulative[-1] == 1
    return np.diff(cumulative, prepend=0)


@pytest.mark.parametrize(
    ("keys", "biased"),
    [
        ({"timestep_bias_strategy": "earlier"}, range(250)),
        ({"timestep_bias_strategy": "later"}, range(750, 1000)),
        (
            {"timestep_bias_strategy": "later", "timestep_bias_portion": 0.0125},
            range(988, 1000),
        ),
        (
            {
                "timestep_bias_strategy": "range",
                "timestep_bias_begin": 200,
                "timestep_bias_end": 500,
            },
            range(200, 500),
        ),
        (
            {"timestep_bias_strategy": "range", "timestep_bias_begin": 900},
            range(900, 1000),
        ),
    ],
)
@pytest.mark.parametrize("multiplier", [0.5, 3.0])
def test_biased_timesteps_are_drawn_so_many_times_as_often(keys, biased, multiplier):
    weights = np.ones(1000)
    weights[biased] *= multiplier
    found = shares_of(**keys, timestep_bias_multiplier=multiplier)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=1e-7)


def test_times_are_spread_over_all_examples_of_a_step():
    assert objective_of(stratified_timesteps=True) == PLAIN._replace(strata=12)
    limited = objective_of(stratified_timesteps=True, max_timestep=300)
    assert limited.strata == 12 and limited.cumulative is not None


def test_limits_hold_for_biased_timesteps_too():
    found = shares_of(
        min_timestep=100,
        max_timestep=300,
        timestep_bias_strategy="earlier",
        timestep_bias_multiplier=2,
    )
    weights = np.r_[np.zeros(100), np.full(150, 2), np.ones(50), np.zeros(700)]
    np.testing.assert_allclose(found, weights / weights.sum(), atol=1e-7)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"min_timestep": 1000},
            "min_timestep: expected less than 1000, the model's number of timesteps, "
            "found 1000; choose a smaller one",
        ),
        (
            {"max_timestep": 1001},
            "max_timestep: expected at most 1000, the model's number of timesteps, "
            "found 1001; leave it out for all",
        ),
        (
            {"timestep_bias_strategy": "range", "timestep_bias_begin": 1000},
            "timestep_bias_begin: expected less than 1000, the model's number of "
            "timesteps, found 1000; choose a smaller one",
        ),
        (
            {"timestep_bias_strategy": "range", "timestep_bias_end": 2000},
            "timestep_bias_end: expected at most 1000, the model's number of "
            "timesteps, found 2000; leave it out for all",
        ),
        (
            {"timestep_bias_strategy": "later", "timestep_bias_portion": 1e-4},
            "timestep_bias_portion: expected one timestep or more, found 0.0001 of the "
            "model's 1000; choose a larger share",
        ),
        (
            {"scale_v_pred_loss_like_noise_pred": True},
            "scale_v_pred_loss_like_noise_pred: expected a model that predicts v, "
            "found one that predicts noise (epsilon); leave it out",
        ),
    ],
)
def test_what_does_not_suit_the_model_is_one_line(keys, told):
    with pytest.raises(UserError) as caught:
        objective_of(**keys)
    assert str(caught.value) == told
