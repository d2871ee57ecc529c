"""The process of Playground v2.5 and CosXL (Karras et al. 2022, EDM).

x = z + sigma eps, and the UNet F sees c_in x and c_noise = ln(sigma) / 4, with
D = c_skip x + c_out F for z (ibid., table 1). c_in x is written signal z + noise eps
here, as in the other processes: signal = c_in, noise = c_in sigma. `config` is
scheduler_config.json throughout.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from ti_flax.diffusion.noise_levels import Levels
from ti_flax.diffusion.process import (
    MAX_TIMESTEPS,
    Ddpm,
    read_prediction_type,
    scheduler_settings,
)

# Our name -> diffusers' class.
SCHEDULERS = {
    "dpmpp_2m": "EDMDPMSolverMultistepScheduler",
    "euler": "EDMEulerScheduler",
}
# Settings with one value that is supported.
FIXED: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler is of this process."""
    return config.get("_class_name") in SCHEDULERS.values()


class Edm(NamedTuple):
    """The noising process on T noise levels, the least first.

    `sign` is that of c_out: -1 where the model is said to predict v.
    """

    sigmas: Float[Array, "T"]
    sigma_data: float
    sign: float

    # What weights of the loss of noise and of v ask for: F is neither.
    prediction_type = "edm"

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "Edm":
        """Raises `UserError` for settings that are no noise levels."""
        settings = scheduler_settings(config)
        # It has no betas that a run's key could change.
        settings.fixed({"rescale_betas_zero_snr": False})
        total = settings.integer("num_train_timesteps", 2, MAX_TIMESTEPS, 1000)
        sigmas = sigmas_of(config, total)[::-1]
        sigma_data, sign = read_output(config)
        return cls(jnp.asarray(sigmas, jnp.float32), sigma_data, sign)

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.sigmas.shape[0]

    @property
    def alphas_cumprod(self) -> Float[Array, "T"]:
        """That of the same ratio of signal and noise."""
        return 1 / (1 + jnp.square(self.sigmas))

    # Uniform over 0 ... T - 1, as in diffusers.
    draw_times = Ddpm.draw_times
    spread_times = Ddpm.spread_times
    # c_in (x_0 + sigma eps), by this process's `_scales`.
    add_noise = Ddpm.add_noise

    def told(self, timesteps: Int[Array, "B"]) -> Float[Array, "B"]:
        """c_noise."""
        return jnp.log(self.sigmas[timesteps]) / 4

    def weight(self, timesteps: Int[Array, "B"]) -> Float[Array, "B"]:
        """c_out^2, which makes of the error of F that of D: diffusers' EDM loss."""
        return jnp.square(self.sigma_data * self._scales(timesteps, 1)[1])

    def target(
        self,
        x0: Float[Array, "B *shape"],
        eps: Float[Array, "B *shape"],
        timesteps: Int[Array, "B"],
    ) -> Float[Array, "B *shape"]:
        """(x_0 - c_skip x) / c_out, without its difference of near numbers."""
        signal, noise = self._scales(timesteps, x0.ndim)
        return self.sign * (
            noise / self.sigma_data * x0 - signal * self.sigma_data * eps
        )

    def _scales(self, timesteps: Int[Array, "B"], ndim: int) -> tuple[Array, Array]:
        sigmas = self.sigmas[timesteps].reshape(-1, *(1,) * (ndim - 1))
        signal = 1 / jnp.sqrt(jnp.square(sigmas) + self.sigma_data**2)
        return signal, sigmas * signal


Process = Ddpm | Edm


def read_process(config: Mapping[str, Any]) -> Process:
    """The process that a scheduler is of; raises `UserError` for a third."""
    return (Edm if claims(config) else Ddpm).from_json(config)


def sigmas_of(config: Mapping[str, Any], count: int) -> Float64[np.ndarray, "N"]:
    """Noise levels of a model's own range, the largest first."""
    settings = scheduler_settings(config)
    largest = settings.number("sigma_max", 1e-2, 1e5, 80.0)
    smallest = settings.number("sigma_min", 1e-6, largest, 0.002)
    known = ("karras", "exponential")
    if settings.choice("sigma_schedule", known, "karras") == "exponential":
        return np.exp(np.linspace(np.log(largest), np.log(smallest), count))
    rho = settings.number("rho", 1e-2, 100.0, 7.0)
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), count) ** rho


def read_output(config: Mapping[str, Any]) -> tuple[float, float]:
    """sigma_data, and the sign of c_out."""
    data = scheduler_settings(config).number("sigma_data", 1e-3, 1e3, 0.5)
    return data, -1.0 if read_prediction_type(config) == "v_prediction" else 1.0


class Schedule(NamedTuple):
    """A sampler's way; `levels` end in x itself, which is not multiplied by c_in."""

    start_scale: float
    timesteps: Float64[np.ndarray, "N"]
    levels: Levels


def schedule(config: Mapping[str, Any], num_steps: int) -> Schedule:
    """That of diffusers' two schedulers, in as many steps."""
    sigmas, settings = sigmas_of(config, num_steps), scheduler_settings(config)
    ends = settings.choice("final_sigmas_type", ("zero", "sigma_min"), "zero")
    last = 0.0 if ends == "zero" else settings.number("sigma_min", 1e-6, 1e5, 0.002)
    signal = 1 / np.hypot(sigmas, read_output(config)[0])
    return Schedule(
        float(np.hypot(settings.number("sigma_max", 1e-2, 1e5, 80.0), 1) * signal[0]),
        np.log(sigmas) / 4,
        Levels(np.append(signal, 1.0), np.append(sigmas * signal, last)),
    )
