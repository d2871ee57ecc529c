"""Weights, thresholds and frequencies of timesteps, written again from the papers."""

import numpy as np
import pytest

from ti_flax.diffusion import timestep_tables
from ti_flax.diffusion.process import read_alphas_cumprod

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "plain": read_alphas_cumprod(SD),
    "zero terminal SNR": read_alphas_cumprod(SD | {"rescale_betas_zero_snr": True}),
    "short": read_alphas_cumprod({"trained_betas": list(np.linspace(0.01, 0.2, 50))}),
    # As float32 has the first timestep of a very fine schedule.
    "no noise at first": np.array([1.0, 0.5, 0.1]),
}


@pytest.fixture(params=SCHEDULES)
def abar(request):
    return SCHEDULES[request.param]


def signal_over_noise(abar):
    """SNR = (alpha / sigma)^2, alpha^2 = abar, sigma^2 = 1 - abar; one by one."""
    return [a / (1 - a) if a < 1 else float("inf") for a in abar]


def test_snr(abar):
    np.testing.assert_allclose(
        timestep_tables.snr_of(abar), signal_over_noise(abar), rtol=1e-12
    )


@pytest.mark.parametrize("gamma", [0.5, 5.0, 20.0])
def test_min_snr_weights(abar, gamma):
    snr = timestep_tables.snr_of(abar)
    eps = timestep_tables.min_snr_weights(snr, gamma, v=False)
    v = timestep_tables.min_snr_weights(snr, gamma, v=True)
    for t, s in enumerate(signal_over_noise(abar)):
        # The loss of x0 is to be weighted by min(SNR, gamma); that of eps is SNR times
        # it, that of v (SNR + 1) times it.
        clipped = min(s, gamma)
        if np.isinf(s):
            assert eps[t] == v[t] == 0
            continue
        assert v[t] == pytest.approx(clipped / (s + 1), rel=1e-12)
        assert eps[t] == pytest.approx(clipped / s if s else 1.0, rel=1e-12)
    if abar[-1] == 0:
        assert eps[-1] == 1 and v[-1] == 0
    assert np.isfinite(eps).all() and np.isfinite(v).all()
    # No timestep counts more than it does unweighted.
    assert eps.max() <= 1 and v.max() <= 1


def test_min_snr_weighs_eps_and_v_alike():
    """The same model's two losses are (SNR + 1) / SNR apart, and so are its weights."""
    snr = timestep_tables.snr_of(SCHEDULES["plain"])
    eps = timestep_tables.min_snr_weights(snr, 5.0, v=False)
    v = timestep_tables.min_snr_weights(snr, 5.0, v=True)
    np.testing.assert_allclose(v * (snr + 1) / snr, eps, rtol=1e-12)


def test_debiased_weights(abar):
    snr = timestep_tables.snr_of(abar)
    eps = timestep_tables.debiased_weights(snr, v=False)
    v = timestep_tables.debiased_weights(snr, v=True)
    for t, s in enumerate(signal_over_noise(abar)):
        capped = min(s, 1000.0)
        assert v[t] == pytest.approx(1 / (capped + 1), rel=1e-12)
        expected = capped**-0.5 if s else float("inf")
        assert eps[t] == pytest.approx(expected, rel=1e-12)


def test_noise_like_weights(abar):
    found = timestep_tables.noise_like_weights(timestep_tables.snr_of(abar))
    for t, s in enumerate(signal_over_noise(abar)):
        # SNR / (SNR + 1) is abar, but for the cap.
        expected = abar[t] if s <= 1000 else 1000 / 1001
        assert found[t] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 3.0])
def test_huber_thresholds(abar, c):
    total = len(abar)
    np.testing.assert_array_equal(
        timestep_tables.huber_thresholds(abar, "constant", c), [c] * total
    )
    falling = timestep_tables.huber_thresholds(abar, "exponential", c)
    np.testing.assert_allclose(
        falling, np.exp(-np.arange(total) * (-np.log(c) / total)), rtol=1e-9
    )
    by_snr = timestep_tables.huber_thresholds(abar, "snr", c)
    for t, s in enumerate(signal_over_noise(abar)):
        sigma = s**-0.5 if s else float("inf")
        assert by_snr[t] == pytest.approx((1 - c) / (1 + sigma) ** 2 + c, rel=1e-9)
    assert (by_snr > 0).all()
    if abar[-1] == 0:
        assert by_snr[-1] == c


def test_frequencies_are_the_weights_over_their_sum():
    found = timestep_tables.biased_frequencies(
        10, slice(6, 10), multiplier=3.0, drawn=slice(2, 8)
    )
    # Of 2 ... 7, the two of 6 ... 9 count three times.
    np.testing.assert_allclose(found, np.array([0, 0, 1, 1, 1, 1, 3, 3, 0, 0]) / 10)
    plain = timestep_tables.biased_frequencies(10, slice(0), 3.0, slice(0, 10))
    np.testing.assert_allclose(plain, [0.1] * 10)
