import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.diffusion.process import Ddpm, mse
from ti_flax.runtime import errors

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
VARIANTS = [
    SD,
    SD | {"beta_schedule": "linear"},
    SD | {"rescale_betas_zero_snr": True},
    SD | {"trained_betas": list(np.linspace(0.01, 0.02, 50))},
]


def test_alphas_cumprod_is_the_running_product_of_one_minus_beta():
    schedule = Ddpm.from_json(SD)
    product, expected = 1.0, []
    for t in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999
        product *= 1 - root**2
        expected.append(product)
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=1e-6)
    assert schedule.num_timesteps == len(expected)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    plain = Ddpm.from_json(SD).alphas_cumprod
    rescaled = Ddpm.from_json(SD | {"rescale_betas_zero_snr": True}).alphas_cumprod
    assert rescaled[-1] == 0
    np.testing.assert_allclose(rescaled[0], plain[0], rtol=1e-6)
    assert np.all(np.diff(rescaled) < 0)


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_equal_diffusers(config, prediction_type):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    schedule = Ddpm.from_json(config | {"prediction_type": prediction_type})
    theirs = diffusers.DDPMScheduler(**config, prediction_type=prediction_type)
    random = np.random.default_rng(0)
    x0, eps = random.normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
    timesteps = np.array([0, 1, 17, 48, 49])
    arguments = [torch.tensor(a) for a in (x0, eps, timesteps)]
    np.testing.assert_allclose(
        schedule.add_noise(*map(jnp.asarray, (x0, eps, timesteps))),
        theirs.add_noise(*arguments).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )
    expected = eps
    if prediction_type == "v_prediction":
        expected = theirs.get_velocity(*arguments).numpy()
    np.testing.assert_allclose(
        schedule.target(*map(jnp.asarray, (x0, eps, timesteps))),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_v_and_x_t_give_back_x0_and_eps():
    schedule = Ddpm.from_json(SD | {"prediction_type": "v_prediction"})
    random = np.random.default_rng(1)
    x0, eps = jnp.asarray(random.normal(size=(2, 6, 8)), jnp.float32)
    timesteps = jnp.array([0, 100, 300, 500, 800, 999])
    x_t = schedule.add_noise(x0, eps, timesteps)
    v = schedule.target(x0, eps, timesteps)
    cosine = np.sqrt(np.asarray(schedule.alphas_cumprod)[timesteps])[:, None]
    sine = np.sqrt(1 - cosine**2)
    np.testing.assert_allclose(cosine * x_t - sine * v, x0, atol=1e-5)
    np.testing.assert_allclose(sine * x_t + cosine * v, eps, atol=1e-5)


def test_mse_is_each_examples_own_and_float32():
    prediction = jnp.full((2, 3, 3), 2.0, jnp.bfloat16).at[1].set(5.0)
    loss = mse(prediction, jnp.ones((2, 3, 3), jnp.bfloat16))
    np.testing.assert_array_equal(loss, [1.0, 16.0])
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prediction_type": "sample"}, "sample"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "another noising process"),
        ({"_class_name": "EDMEulerScheduler"}, "another noising process"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "another noising process"),
    ],
)
def test_unknown_settings_are_named(change, word):
    with pytest.raises(errors.UserError, match=word):
        Ddpm.from_json(SD | change)
