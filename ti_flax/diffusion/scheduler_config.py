"""Samplers as scheduler_config.json describes them: timesteps, levels, coefficients.

Everything here is float64 numpy until the sampler is handed out. diffusers' schedulers
are the reference for what a setting means.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ti_flax.diffusion import edm, noise_levels, samplers
from ti_flax.diffusion.process import (
    read_alphas_cumprod,
    read_prediction_type,
    scheduler_settings,
)
from ti_flax.runtime.errors import UserError, shown

# Our name -> diffusers' class, as `_class_name` in scheduler_config.json has it.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
}
# What diffusers' consistency models take the spread of latents for (Luo et al. 2023).
_LCM_SIGMA_DATA = 0.5
# Settings with one value that is supported; a file may leave them out.
_FIXED: dict[str, dict[str, Any]] = {
    "ddim": {"thresholding": False},
    "dpmpp_2m": {
        "algorithm_type": "dpmsolver++",
        "lambda_min_clipped": -np.inf,
        "solver_order": 2,
        "solver_type": "midpoint",
        "thresholding": False,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_flow_sigmas": False,
        "use_lu_lambdas": False,
        "variance_type": None,
    },
    "euler": {
        "interpolation_type": "linear",
        "sigma_max": None,
        "sigma_min": None,
        "timestep_type": "discrete",
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
    },
    "lcm": {"clip_sample": False, "thresholding": False},
    "pndm": {"skip_prk_steps": True},
}


def find_name(config: Mapping[str, Any]) -> str:
    """Our name of the checkpoint's own scheduler; `UserError` if there is none."""
    class_name = config.get("_class_name")
    for name, known in (*SCHEDULERS.items(), *edm.SCHEDULERS.items()):
        if class_name == known:
            return name
    raise UserError(
        f"scheduler: the model's own is {shown(class_name)}, supported are "
        f"{', '.join(SCHEDULERS.values())}; choose one with --scheduler "
        f"{'|'.join(SCHEDULERS)}"
    )


def make_sampler(
    config: Mapping[str, Any], name: str, num_steps: int
) -> samplers.Sampler:
    """The sampler `name` on the schedule and settings of `scheduler_config.json`.

    Settings that the file lacks have the defaults of diffusers' class, apart from
    `steps_offset`, which StableDiffusionPipeline wants to be 1. `clip_sample` has no
    effect, as in that pipeline: latents are not confined to [-1, 1] (LCM's would be).

    Raises:
        UserError: a setting that is not supported, or more steps than timesteps.
    """
    instead = f"choose another scheduler ({', '.join(SCHEDULERS)})"
    fixed = _FIXED[name]
    if edm.claims(config):
        if name not in edm.SCHEDULERS:
            raise UserError(
                f"scheduler: {name} is not for models of EDM (Karras et al. 2022); "
                f"choose one of {', '.join(edm.SCHEDULERS)}"
            )
        fixed = edm.FIXED
    scheduler_settings(config, instead).fixed(fixed)
    make = {
        "ddim": _make_ddim,
        "dpmpp_2m": _make_dpm_solver_2m,
        "euler": _make_euler,
        "lcm": _make_lcm,
        "pndm": _make_plms,
    }[name]
    stepper, steps = make(config, num_steps)
    return samplers.Sampler(stepper, jax.tree.map(_to_float32, steps))


def _to_float32(numbers: Any) -> np.ndarray:
    numbers = np.asarray(numbers)
    return numbers if numbers.dtype == bool else numbers.astype(np.float32)


def _make_ddim(config: Mapping[str, Any], num_steps: int) -> samplers.Sampler:
    timesteps = noise_levels.place_timesteps(config, "leading", num_steps).round()
    transfer = _fixed_strides(config, timesteps, num_steps, set_alpha_to_one=True)
    return samplers.Sampler(samplers.ddim, samplers.Steps(1.0, timesteps, transfer))


def _make_plms(config: Mapping[str, Any], num_steps: int) -> samplers.Sampler:
    timesteps = noise_levels.place_timesteps(config, "leading", num_steps).round()
    # The first step is made twice: the second time with the mean of the predictions at
    # its two ends, and to the second timestep. A single step has none to do so.
    evaluated = np.concatenate([timesteps[:2], timesteps[1:]])
    starts = evaluated.copy()
    starts[1:2] += _stride(config, num_steps)
    transfer = _fixed_strides(config, starts, num_steps, set_alpha_to_one=False)
    # Adams-Bashforth weights, of as high an order as there are predictions.
    weights = np.zeros((len(evaluated), 4))
    weights[4:] = np.array([55, -59, 37, -9]) / 24
    weights[3:4, :3] = np.array([23, -16, 5]) / 12
    weights[2:3, :2] = np.array([3, -1]) / 2
    weights[1:2, :2] = np.array([1, 1]) / 2
    weights[0, 0] = 1
    restart = np.arange(len(evaluated)) == 1
    return samplers.Sampler(
        samplers.plms,
        samplers.Steps(1.0, evaluated, samplers.Multistep(transfer, weights, restart)),
    )


def _make_euler(config: Mapping[str, Any], num_steps: int) -> samplers.Sampler:
    if edm.claims(config):
        start_scale, timesteps, levels = edm.schedule(config, num_steps)
    else:
        start_scale, timesteps, levels = _euler_schedule(config, num_steps)
    transfer = _transfer(config, levels.before, levels.after)
    return samplers.Sampler(
        samplers.ddim, samplers.Steps(start_scale, timesteps, transfer)
    )


def _euler_schedule(
    config: Mapping[str, Any], num_steps: int
) -> tuple[float, np.ndarray, noise_levels.Levels]:
    table = noise_levels.sigma_table(config)
    # The timesteps are not rounded: the UNet is asked between those of its training.
    timesteps = noise_levels.place_timesteps(config, "linspace", num_steps)
    sigmas = np.interp(timesteps, np.arange(len(table)), table)
    if scheduler_settings(config).flag("use_karras_sigmas", False):
        sigmas = noise_levels.karras_sigmas(sigmas[0], sigmas[-1], num_steps)
        timesteps = noise_levels.timesteps_of(sigmas, table)
    levels = noise_levels.levels_of(
        np.append(sigmas, noise_levels.last_sigma(config, table))
    )
    # Only with this spacing do diffusers' latents start with the variance of x_t.
    leading = noise_levels.spacing_of(config, "linspace") == "leading"
    start_scale = np.hypot(leading, sigmas.max()) * levels.signal[0]
    return start_scale, timesteps, levels


def _make_dpm_solver_2m(config: Mapping[str, Any], num_steps: int) -> samplers.Sampler:
    if edm.claims(config):
        start_scale, timesteps, levels = edm.schedule(config, num_steps)
    else:
        start_scale, timesteps, levels = _dpm_schedule(config, num_steps)
    signal, noise = levels.before
    next_signal, next_noise = levels.after
    x0, _ = _x0_and_eps(config, signal, noise)
    step = samplers.TwoStep(
        denoise=x0,
        x=next_noise / noise,
        # alpha_t (1 - exp(-h)) of the paper, without the infinite h of the last step.
        x0=next_signal - signal * next_noise / noise,
        extrapolation=_extrapolation(config, levels),
    )
    return samplers.Sampler(
        samplers.dpm_solver_2m, samplers.Steps(start_scale, timesteps, step)
    )


def _dpm_schedule(
    config: Mapping[str, Any], num_steps: int
) -> tuple[float, np.ndarray, noise_levels.Levels]:
    table = noise_levels.sigma_table(config)
    timesteps = noise_levels.place_timesteps(
        config, "linspace", num_steps, skip_last=True
    ).round()
    if scheduler_settings(config).flag("use_karras_sigmas", False):
        sigmas = noise_levels.karras_sigmas(table[-1], table[0], num_steps)
        timesteps = noise_levels.timesteps_of(sigmas, table).round()
    else:
        sigmas = table[timesteps.astype(int)]
    levels = noise_levels.levels_of(
        np.append(sigmas, noise_levels.last_sigma(config, table))
    )
    return 1.0, timesteps, levels


def _make_lcm(config: Mapping[str, Any], num_steps: int) -> samplers.Sampler:
    total = len(read_alphas_cumprod(config))
    settings = scheduler_settings(config)
    distilled = settings.integer("original_inference_steps", 1, total, min(50, total))
    if num_steps > distilled:
        raise UserError(
            f"steps: LCM has the {distilled} steps of its distillation at most, found "
            f"{num_steps}; take 4 to 8"
        )
    known = np.arange(distilled, 0, -1) * (total // distilled) - 1
    timesteps = known[np.arange(num_steps) * distilled // num_steps]
    start = noise_levels.levels_at(config, timesteps, set_alpha_to_one=True)
    # Noise comes back but for the last step, to the level of the next.
    signal, noise = np.append(start.signal[1:], 1.0), np.append(start.noise[1:], 0.0)
    scaled = timesteps * settings.number("timestep_scaling", 1e-6, 1e6, 10.0)
    spread = np.hypot(scaled, _LCM_SIGMA_DATA)
    skip, out = (_LCM_SIGMA_DATA / spread) ** 2, scaled / spread
    x0, _ = _x0_and_eps(config, start.signal, start.noise)
    denoise = samplers.Transfer(out * x0.x + skip, out * x0.prediction)
    return samplers.Sampler(
        samplers.lcm,
        samplers.Steps(
            1.0, timesteps.astype(float), samplers.Renewal(denoise, signal, noise)
        ),
    )


def _extrapolation(
    config: Mapping[str, Any], levels: noise_levels.Levels
) -> np.ndarray:
    """1 / 2r of DPM-Solver++(2M): h over twice the h before; 0 is first order."""
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(levels.signal) - np.log(levels.noise))
    extrapolation = np.zeros_like(h)
    extrapolation[1:] = 0.5 * h[1:] / h[:-1]
    settings = scheduler_settings(config)
    few = settings.flag("lower_order_final", True) and len(h) < 15
    if few or settings.flag("euler_at_final", False) or levels.noise[-1] == 0:
        extrapolation[-1] = 0
    return extrapolation


def _fixed_strides(
    config: Mapping[str, Any],
    starts: np.ndarray,
    num_steps: int,
    set_alpha_to_one: bool,
) -> samplers.Transfer:
    """Steps from whole timesteps, each T // N down: diffusers', whatever the spacing.

    Where the timesteps are spaced otherwise, a step ends beside the level that the next
    one takes its latents to have.
    """
    ends = starts - _stride(config, num_steps)
    return _transfer(
        config,
        noise_levels.levels_at(config, starts, set_alpha_to_one),
        noise_levels.levels_at(config, ends, set_alpha_to_one),
    )


def _stride(config: Mapping[str, Any], num_steps: int) -> int:
    return len(read_alphas_cumprod(config)) // num_steps


def _transfer(
    config: Mapping[str, Any], start: noise_levels.Levels, end: noise_levels.Levels
) -> samplers.Transfer:
    """signal_s x_0 + noise_s eps as factors of x_t and of the prediction."""
    x0, eps = _x0_and_eps(config, start.signal, start.noise)
    return jax.tree.map(lambda x0, eps: end.signal * x0 + end.noise * eps, x0, eps)


def _x0_and_eps(
    config: Mapping[str, Any], signal: np.ndarray, noise: np.ndarray
) -> tuple[samplers.Transfer, samplers.Transfer]:
    """x_0 and eps as factors of x_t and of the prediction.

    For v see Salimans & Ho 2022, appendix D. Raises `UserError` where eps is asked to
    tell x_0 in pure noise.
    """
    if edm.claims(config):
        data, sign = edm.read_output(config)
        x0 = samplers.Transfer(data**2 * signal, sign * data * noise)
        return x0, samplers.Transfer(noise, -sign * data * signal)
    if read_prediction_type(config) == "v_prediction":
        return samplers.Transfer(signal, -noise), samplers.Transfer(noise, signal)
    if not signal.all():
        raise UserError(
            "scheduler: rescale_betas_zero_snr starts from pure noise, in which "
            "prediction_type epsilon says nothing; expected v_prediction, or another "
            "timestep_spacing than trailing"
        )
    x0 = samplers.Transfer(1 / signal, -noise / signal)
    return x0, samplers.Transfer(np.zeros_like(signal), np.ones_like(signal))
