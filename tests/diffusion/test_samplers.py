"""Samplers against diffusers, against the papers' formulas and against exact solutions.

Coefficients are made by `schedulers` and `noise_levels`, and so tested here with them.
"""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.config import generate_keys
from ti_flax.diffusion import samplers, scheduler_config
from ti_flax.generation import sampling
from ti_flax.models.random_params import random_params
from ti_flax.models.torch_params import save_params
from ti_flax.runtime import errors, sharding

_BETAS = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
# scheduler_config.json of the published repositories.
SHIPPED = {
    "sd-1-5": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **_BETAS,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "sd-2-1-base": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.10.0.dev0",
        **_BETAS,
        "clip_sample": False,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "sd-2-1": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        **_BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
}
SD = SHIPPED["sd-1-5"]
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
# That of LCM wants noise in every step: test_lcm.py.
NAMES = tuple(name for name in scheduler_config.SCHEDULERS if name != "lcm")
PREDICTIONS = ("epsilon", "v_prediction")
GUIDANCE_SCALE = 7.5


def sample(config, name, num_steps, predict, noise):
    sampler = scheduler_config.make_sampler(config, name, num_steps)
    return np.asarray(samplers.sample(*sampler, predict, jnp.asarray(noise)))


def relative_error(ours, theirs):
    assert np.any(theirs)
    return np.linalg.norm(np.float64(ours) - theirs) / np.linalg.norm(theirs)


# diffusers, with a network


CASES = [
    pytest.param(name, config | {"prediction_type": kind}, id=f"{name}-{model}-{kind}")
    for name in NAMES
    for model, config in SHIPPED.items()
    for kind in PREDICTIONS
] + [
    pytest.param(name, SD | change | {"prediction_type": kind}, id=f"{name}-{i}-{kind}")
    for i, (change, names) in enumerate(
        [
            ({"use_karras_sigmas": True}, ("dpmpp_2m", "euler")),
            ({"final_sigmas_type": "sigma_min"}, ("dpmpp_2m", "euler")),
            ({"timestep_spacing": "leading"}, ("dpmpp_2m", "euler")),
            ({"timestep_spacing": "trailing"}, NAMES),
            (ZERO_SNR, ("ddim", "dpmpp_2m", "euler")),
            ({"set_alpha_to_one": True}, ("ddim", "pndm")),
            (
                {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
                ("dpmpp_2m",),
            ),
        ]
    )
    for name in names
    for kind in PREDICTIONS
    # Nothing can be told from pure noise by its eps: an error of its own below.
    if not (name == "ddim" and change == ZERO_SNR and kind == "epsilon")
]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The same random UNet in diffusers and here, with what it is asked about."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    # So small a network runs many times faster without waiting for other threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("network") / "unet"
    params = random_params(slots.CONFIGS, "unet")
    save_params(folder, slots.CONFIGS["unet"], params, np.float32)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder)
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, 8, 8, 4)).astype(np.float32)
    context = random.normal(size=(2, 6, slots.WIDTH)).astype(np.float32)
    negative = random.normal(size=(6, slots.WIDTH)).astype(np.float32)
    yield theirs, params, noise, context, negative
    torch.set_num_threads(threads)


def diffusers_latents(network, scheduler, num_steps):
    """StableDiffusionPipeline's loop over the steps."""
    import torch

    unet, _, noise, context, negative = network
    noise = torch.tensor(np.moveaxis(noise, -1, 1))
    negatives = np.broadcast_to(negative, context.shape)
    contexts = torch.tensor(np.concatenate([negatives, context]))
    scheduler.set_timesteps(num_steps)
    x = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            uncond, cond = unet(both, t, contexts).sample.chunk(2)
            prediction = uncond + GUIDANCE_SCALE * (cond - uncond)
            x = scheduler.step(prediction, t, x).prev_sample
    return np.moveaxis(x.numpy(), 1, -1)


# What diffusers' use of torch and numpy deprecates is not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "config"), CASES)
def test_latents_after_20_guided_steps_equal_diffusers(network, name, config):
    import diffusers

    scheduler = getattr(diffusers, scheduler_config.SCHEDULERS[name]).from_config(
        config
    )
    theirs = diffusers_latents(network, scheduler, 20)
    _, params, noise, context, negative = network
    sampler = scheduler_config.make_sampler(config, name, 20)
    np.testing.assert_allclose(sampler.steps.timesteps, scheduler.timesteps, atol=1e-2)
    ours = sampling.sample_latents(
        params,
        sampler.steps,
        (context,),
        (negative,),
        noise,
        GUIDANCE_SCALE,
        stepper=sampler.stepper,
        denoiser=slots.FAMILY.denoiser.module,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    assert relative_error(ours, theirs) < 1e-3


# The papers' formulas, float64


def nonlinear(xp, x, t):
    """A prediction for numpy and JAX that depends on latents and timestep."""
    return xp.tanh(1.3 * x) + 0.2 * xp.sin(x * t / 300)


def levels(abar):
    return np.sqrt(abar), np.sqrt(1 - abar)


def x0_and_eps(kind, x, prediction, abar):
    signal, noise = levels(abar)
    if kind == "v_prediction":
        return signal * x - noise * prediction, noise * x + signal * prediction
    return (x - noise * prediction) / signal, prediction


def alphas_cumprod():
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def numpy_ddim(kind, x, predict):
    """Song et al. 2021, eq. 12, on timesteps 901, 801, ..., 1 and then 0."""
    abar = alphas_cumprod()
    for t in range(901, 0, -100):
        x0, eps = x0_and_eps(kind, x, predict(x, t), abar[t])
        signal, noise = levels(abar[max(t - 100, 0)])
        x = signal * x0 + noise * eps
    return x


def numpy_euler(kind, x, predict):
    """Karras et al. 2022, algorithm 1 without lines 6-8, on x / signal and sigma."""
    abar = alphas_cumprod()
    sigma = np.sqrt(1 / abar - 1)
    times = np.linspace(999, 0, 10)
    stops = [*np.interp(times, range(1000), sigma), 0.0]
    x = stops[0] * x
    for t, now, after in zip(times, stops, stops[1:], strict=False):
        x_t = x / np.sqrt(now**2 + 1)
        x0, _ = x0_and_eps(kind, x_t, predict(x_t, t), 1 / (1 + now**2))
        x = x + (after - now) * (x - x0) / now
    return x


def numpy_dpm_solver(kind, x, predict):
    """Lu et al. 2022, algorithm 2: lambda is half the log-SNR; the end is x_0."""
    abar = alphas_cumprod()
    times = np.linspace(999, 0, 11).round().astype(int)[:-1]
    alpha, sigma = levels(abar)
    lamda = np.log(alpha / sigma)
    before = None
    for i, t in enumerate(times):
        x0, _ = x0_and_eps(kind, x, predict(x, t), abar[t])
        if i == len(times) - 1:
            return x0
        s, h = times[i + 1], lamda[times[i + 1]] - lamda[t]
        d = x0
        if before is not None:
            r = (lamda[t] - lamda[times[i - 1]]) / h
            d = (1 + 1 / (2 * r)) * x0 - before / (2 * r)
        x = sigma[s] / sigma[t] * x - alpha[s] * np.expm1(-h) * d
        before = x0


def numpy_pndm(kind, x, predict):
    """Liu et al. 2022, eqs. 11 and 12; the first step by Heun's method instead."""
    abar = alphas_cumprod()

    def transfer(x, prediction, t, s):
        a, b = abar[t], abar[s]
        _, eps = x0_and_eps(kind, x, prediction, a)
        below = a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b)
        return np.sqrt(b / a) * x - (b - a) * eps / below

    first = predict(x, 901)
    second = predict(transfer(x, first, 901, 801), 801)
    x = transfer(x, (first + second) / 2, 901, 801)
    past = [first]
    for t in range(801, 0, -100):
        past.append(predict(x, t))
        mean = {
            2: lambda e: (3 * e[-1] - e[-2]) / 2,
            3: lambda e: (23 * e[-1] - 16 * e[-2] + 5 * e[-3]) / 12,
        }.get(
            len(past),
            lambda e: (55 * e[-1] - 59 * e[-2] + 37 * e[-3] - 9 * e[-4]) / 24,
        )(past)
        x = transfer(x, mean, t, max(t - 100, 0))
    return x


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("ddim", numpy_ddim),
        ("euler", numpy_euler),
        ("dpmpp_2m", numpy_dpm_solver),
        ("pndm", numpy_pndm),
    ],
)
def test_ten_steps_are_those_of_the_paper(name, formula, kind):
    noise = np.random.default_rng(1).normal(size=(1, 3, 3, 2))
    config = SD | {"prediction_type": kind}
    predict = functools.partial(nonlinear, jnp)
    ours = sample(config, name, 10, predict, noise.astype(np.float32))
    expected = formula(kind, noise, functools.partial(nonlinear, np))
    assert relative_error(ours, expected) < 1e-5


# Exact solutions


MEAN, STD = 0.5, 0.3


def gaussian(kind, x, t):
    """What a perfect network predicts where x_0 is N(MEAN, STD^2).

    Between whole timesteps sigma is interpolated, as Euler's is.
    """
    abar = alphas_cumprod()
    sigma = jnp.interp(t, jnp.arange(1000.0), jnp.asarray(np.sqrt(1 / abar - 1)))
    signal = 1 / jnp.sqrt(1 + sigma**2)
    noise = sigma * signal
    variance = (signal * STD) ** 2 + noise**2
    eps = noise * (x - signal * MEAN) / variance
    x0 = MEAN + signal * STD**2 * (x - signal * MEAN) / variance
    return eps if kind == "epsilon" else signal * eps - noise * x0


def exact(x, start, end):
    """The probability-flow ODE keeps (x_t - signal MEAN) / its standard deviation."""

    def deviation(abar):
        signal, noise = levels(abar)
        return signal * MEAN, np.sqrt((signal * STD) ** 2 + noise**2)

    (mean, std), (end_mean, end_std) = deviation(start), deviation(end)
    return end_mean + end_std * (x - mean) / std


KARRAS = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
EPSILON, V_PREDICTION = ({"prediction_type": kind} for kind in PREDICTIONS)


@pytest.mark.parametrize(
    ("name", "change", "order"),
    [
        ("ddim", EPSILON, 1),
        ("ddim", V_PREDICTION, 1),
        ("ddim", {"timestep_spacing": "trailing", "set_alpha_to_one": True}, 1),
        ("euler", EPSILON | {"timestep_spacing": "leading"}, 1),
        ("euler", V_PREDICTION | {"timestep_spacing": "leading"}, 1),
        ("euler", {"timestep_spacing": "leading", "use_karras_sigmas": True}, 1),
        # Its last step is of first order where it leads to sigma 0.
        ("dpmpp_2m", {}, 1),
        ("dpmpp_2m", EPSILON | KARRAS, 2),
        ("dpmpp_2m", V_PREDICTION | KARRAS, 2),
        ("pndm", EPSILON, 2),
        # diffusers' PNDM adds up v's of different latents, which costs an order.
        ("pndm", V_PREDICTION, 1),
        # Where T // N is not the distance of the timesteps, as on linspace, diffusers'
        # steps of DDIM and PNDM approach it irregularly (test_scheduler_config.py).
    ],
)
def test_the_exact_solution_is_approached_with_the_samplers_order(name, change, order):
    config = SD | EPSILON | change
    predict = functools.partial(gaussian, config["prediction_type"])
    noise = np.random.default_rng(2).normal(size=(1, 4, 4, 4)).astype(np.float32)
    abar = alphas_cumprod()
    to_zero = name in ("dpmpp_2m", "euler") and change.get("final_sigmas_type") is None
    found = []
    for num_steps in (24, 48):
        first = scheduler_config.make_sampler(config, name, num_steps).steps.timesteps[
            0
        ]
        assert first == int(first)
        end = 1.0 if to_zero or config["set_alpha_to_one"] else abar[0]
        expected = exact(noise, abar[int(first)], end)
        ours = sample(config, name, num_steps, predict, noise)
        found.append(relative_error(ours, expected))
    coarse, fine = found
    assert fine < {1: 0.07, 2: 0.005}[order]
    assert np.log2(coarse / fine) > order - 0.35, found


# Settings


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("pndm", {}, [751, 501, 501, 251, 1]),
        ("pndm", {"steps_offset": 0}, [750, 500, 500, 250, 0]),
        ("ddim", {}, [751, 501, 251, 1]),
        ("ddim", {"timestep_spacing": "linspace"}, [999, 666, 333, 0]),
        ("ddim", {"timestep_spacing": "trailing"}, [999, 749, 499, 249]),
        ("dpmpp_2m", {}, [999, 749, 500, 250]),
        ("dpmpp_2m", {"timestep_spacing": "leading"}, [801, 601, 401, 201]),
        ("euler", {}, [999, 666, 333, 0]),
    ],
)
def test_timesteps_are_spaced_as_the_settings_say(name, change, expected):
    timesteps = scheduler_config.make_sampler(SD | change, name, 4).steps.timesteps
    np.testing.assert_array_equal(timesteps, expected)


@pytest.mark.parametrize(
    ("change", "num_steps", "first_order"),
    [
        ({}, 20, True),
        (KARRAS, 20, False),
        (KARRAS, 14, True),
        (KARRAS | {"lower_order_final": False}, 14, False),
        (KARRAS | {"euler_at_final": True}, 20, True),
    ],
)
def test_the_last_step_of_dpm_solver_is_of_the_order_that_the_settings_say(
    change, num_steps, first_order
):
    sampler = scheduler_config.make_sampler(SD | change, "dpmpp_2m", num_steps)
    first, *middle, last = sampler.steps.coefficients.extrapolation
    assert first == 0
    assert min(middle) > 0
    assert (last == 0) == first_order


@pytest.mark.parametrize(("name", "to_one"), [("ddim", True), ("pndm", False)])
def test_where_the_last_step_ends_if_the_file_does_not_say(name, to_one):
    config = {key: value for key, value in SD.items() if key != "set_alpha_to_one"}
    noise = np.ones((1, 2, 2, 1), np.float32)
    predict = functools.partial(nonlinear, jnp)
    np.testing.assert_array_equal(
        sample(config, name, 4, predict, noise),
        sample(config | {"set_alpha_to_one": to_one}, name, 4, predict, noise),
    )


def test_steps_offset_is_1_where_old_files_lack_it():
    config = {key: value for key, value in SD.items() if key != "steps_offset"}
    timesteps = scheduler_config.make_sampler(config, "ddim", 2).steps.timesteps
    np.testing.assert_array_equal(timesteps, [501, 1])


def test_euler_asks_between_the_timesteps_of_training():
    timesteps = scheduler_config.make_sampler(SD, "euler", 3).steps.timesteps
    np.testing.assert_array_equal(timesteps, [999, 499.5, 0])


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_possible_and_gives_x0_of_the_first_prediction(name):
    config = SD | {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    noise = np.random.default_rng(3).normal(size=(1, 2, 2, 1)).astype(np.float32)
    predict = functools.partial(nonlinear, jnp)
    signal, sigma = levels(alphas_cumprod()[999])
    x = sigma * noise if name == "euler" else noise
    expected = (x - sigma * nonlinear(np, x, 999)) / signal
    assert relative_error(sample(config, name, 1, predict, noise), expected) < 1e-4


def test_nothing_is_clipped_whatever_the_file_says():
    noise = np.full((1, 2, 2, 1), 3.0, np.float32)
    predict = functools.partial(nonlinear, jnp)
    plain, clipped = (
        sample(SD | {"clip_sample": clip}, "ddim", 4, predict, noise)
        for clip in (False, True)
    )
    assert np.abs(plain).max() > 1
    np.testing.assert_array_equal(plain, clipped)


def test_the_models_own_scheduler_is_found():
    names = {
        model: scheduler_config.find_name(config) for model, config in SHIPPED.items()
    }
    assert names == {"sd-1-5": "pndm", "sd-2-1-base": "pndm", "sd-2-1": "ddim"}


def test_the_command_line_offers_every_scheduler():
    field = generate_keys.PictureKeys.model_fields["scheduler"]
    known = tuple(scheduler_config.SCHEDULERS)
    assert get_args(get_args(field.annotation)[0]) == known


def test_an_unknown_scheduler_is_told_with_those_that_are_known():
    with pytest.raises(errors.UserError, match=r"UniPC.*DDIMScheduler.*--scheduler"):
        scheduler_config.find_name({"_class_name": "UniPCMultistepScheduler"})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("pndm", {"skip_prk_steps": False}, "skip_prk_steps is False.*True"),
        ("dpmpp_2m", {"solver_order": 3}, "solver_order is 3.*supported is 2"),
        ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
        ("ddim", {"thresholding": True}, "thresholding"),
        ("ddim", {"timestep_spacing": "sideways"}, "sideways.*linspace"),
        ("euler", {"final_sigmas_type": "one"}, "one.*sigma_min"),
        ("ddim", {"prediction_type": "sample"}, "sample.*epsilon"),
        ("ddim", ZERO_SNR, "pure noise.*v_prediction"),
    ],
)
def test_settings_that_are_not_supported_are_named(name, change, words):
    with pytest.raises(errors.UserError, match=words):
        scheduler_config.make_sampler(SD | change, name, 4)


@pytest.mark.parametrize(
    ("name", "most"), [("ddim", 999), ("euler", 1000), ("dpmpp_2m", 999)]
)
def test_more_steps_than_timesteps_are_refused(name, most):
    scheduler_config.make_sampler(SD, name, most)
    with pytest.raises(errors.UserError, match=rf"{most + 1} steps .* 1000 timesteps"):
        scheduler_config.make_sampler(SD, name, most + 1)
