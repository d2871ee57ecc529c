"""Process and samplers of EDM are diffusers'; test_sdxl_parity.py has the training."""

import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.diffusion import edm, samplers, scheduler_config
from ti_flax.diffusion.process import Ddpm
from ti_flax.runtime.errors import UserError
from ti_flax.training.objective import make_objective

PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
}
COSXL = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
    "sigma_schedule": "exponential",
}
CHANGES = [
    {},
    {"prediction_type": "v_prediction", "rho": 5.0},
    {"final_sigmas_type": "sigma_min"},
    {"sigma_schedule": "exponential", "sigma_data": 1.0},
    {"euler_at_final": True, "sigma_max": 40.0},
]
CASES = [
    *[PLAYGROUND | change for change in CHANGES],
    COSXL,
    COSXL | {"prediction_type": "epsilon", "sigma_schedule": "karras"},
]
NOISE = np.random.default_rng(0).normal(size=(1, 2, 2, 2)).astype(np.float32)


def predict(xp, x, t):
    """A prediction that depends on latents and time, for torch and JAX."""
    return xp.tanh(1.3 * x) + 0.2 * xp.sin(x * t)


@pytest.mark.parametrize("config", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
def test_the_samplers_are_diffusers(config: dict, num_steps: int) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    if num_steps == 1 and config.get("sigma_schedule") == "exponential":
        pytest.skip("diffusers' one level is the least noise there, ours the most")
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(num_steps)
    x = torch.from_numpy(NOISE).double() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = predict(torch, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x).prev_sample
    name = scheduler_config.find_name(config)
    sampler = scheduler_config.make_sampler(config, name, num_steps)
    np.testing.assert_allclose(sampler.steps.timesteps, scheduler.timesteps, atol=1e-5)
    ours = samplers.sample(
        sampler.stepper,
        sampler.steps,
        lambda x, t: predict(jnp, x, t),
        jnp.asarray(NOISE),
    )
    # Noise levels are float32 there, and 80 at the first.
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CASES, ids=range(len(CASES)))
def test_its_target_is_what_denoises(config: dict) -> None:
    """D = c_skip x + c_out F is z where F is the target; the loss is that of D."""
    process = edm.Edm.from_json(config)
    data = config["sigma_data"]
    random = np.random.default_rng(1)
    z, eps = random.normal(size=(2, 6, 2, 2, 4))
    times = np.array([0, 3, 300, 600, 990, process.num_timesteps - 1])
    sigma = np.asarray(process.sigmas, np.float64)[times].reshape(-1, 1, 1, 1)
    assert sigma[0] == pytest.approx(config["sigma_min"])
    assert sigma[-1] == pytest.approx(config["sigma_max"])
    arrays = jnp.float32(z), jnp.float32(eps), jnp.asarray(times)
    x = z + sigma * eps
    seen = np.asarray(process.add_noise(*arrays), np.float64)
    np.testing.assert_allclose(seen, x / np.hypot(sigma, data), rtol=1e-4, atol=1e-5)
    target = np.asarray(process.target(*arrays), np.float64)
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / np.hypot(sigma, data)
    if config["prediction_type"] == "v_prediction":
        out = -out
    np.testing.assert_allclose(skip * x + out * target, z, atol=1e-4)
    weight = np.asarray(process.weight(arrays[2]))
    np.testing.assert_allclose(weight, (out**2).reshape(-1), rtol=1e-5)
    told = process.told(arrays[2])
    np.testing.assert_allclose(told, np.log(sigma).reshape(-1) / 4, atol=1e-5)


def test_the_middles_of_parts_are_those_of_the_other_process() -> None:
    process, other = edm.Edm.from_json(PLAYGROUND), Ddpm(jnp.ones(1000), "epsilon")
    index = jnp.arange(16)
    ours, theirs = process.spread_times(index, 16), other.spread_times(index, 16)
    np.testing.assert_array_equal(ours, theirs)


def test_other_samplers_are_refused() -> None:
    with pytest.raises(UserError, match=r"ddim is not for .* of dpmpp_2m, euler"):
        scheduler_config.make_sampler(PLAYGROUND, "ddim", 4)
    with pytest.raises(UserError, match="solver_order is 3, supported is 2"):
        scheduler_config.make_sampler(PLAYGROUND | {"solver_order": 3}, "euler", 4)


@pytest.mark.parametrize(
    "keys", [{"snr_gamma": 5.0}, {"debiased_estimation_loss": True}], ids=str
)
def test_weights_of_another_loss_are_refused(keys: dict) -> None:
    [name] = keys
    with pytest.raises(UserError, match=f"{name}: expected a model that predicts noi"):
        make_objective(ObjectiveKeys(**keys), edm.Edm.from_json(PLAYGROUND), 4)


def test_what_are_no_noise_levels_is_refused() -> None:
    with pytest.raises(UserError, match="sigma_min is 90"):
        edm.Edm.from_json(PLAYGROUND | {"sigma_min": 90.0})
    with pytest.raises(UserError, match="rescale_betas_zero_snr is True, supported is"):
        edm.Edm.from_json(PLAYGROUND | {"rescale_betas_zero_snr": True})
