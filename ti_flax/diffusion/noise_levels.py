"""Where a sampler stops on its way from noise: timesteps and noise levels, float64.

A level is signal and noise in x_t = signal x_0 + noise eps, or sigma = noise / signal.
`config` is scheduler_config.json throughout.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from ti_flax.diffusion.process import (
    MAX_TIMESTEPS,
    read_alphas_cumprod,
    scheduler_settings,
)
from ti_flax.runtime.errors import UserError

# The last alpha-bar of a zero-SNR schedule where sigma must be finite, as diffusers'.
_SMALLEST_ALPHA_CUMPROD = 2.0**-24
_KARRAS_RHO = 7.0


class Levels(NamedTuple):
    """Noise levels in the order of sampling."""

    signal: Float64[np.ndarray, "N"]
    noise: Float64[np.ndarray, "N"]

    @property
    def before(self) -> "Levels":
        """Where each step from one level to the next begins."""
        return Levels(self.signal[:-1], self.noise[:-1])

    @property
    def after(self) -> "Levels":
        """Where it ends."""
        return Levels(self.signal[1:], self.noise[1:])


def place_timesteps(
    config: Mapping[str, Any], spacing: str, num_steps: int, skip_last: bool = False
) -> Float64[np.ndarray, "N"]:
    """Descending timesteps (Lin et al. 2023, table 2), not rounded.

    `spacing` is used when the file has none. `skip_last` places one timestep more and
    leaves out the last.
    """
    settings = scheduler_settings(config)
    total = len(read_alphas_cumprod(config))
    placed = num_steps + skip_last
    match spacing_of(config, spacing):
        case "linspace":
            timesteps = np.linspace(0, total - 1, placed)[::-1][:num_steps]
        case "leading":
            timesteps = np.arange(placed)[::-1][:num_steps] * (total // placed)
            offset = settings.integer("steps_offset", 0, MAX_TIMESTEPS, 1)
            timesteps = timesteps + float(offset)
        case _:
            # Also in the rounding of halves diffusers'; its range may be one too long.
            spread = np.arange(total, 0, -total / num_steps)[:num_steps]
            timesteps = spread.round() - 1
    if placed > total or timesteps[0] > total - 1:
        raise UserError(
            f"steps: {num_steps} steps do not fit into the model's {total} timesteps; "
            "take fewer"
        )
    return timesteps


def spacing_of(config: Mapping[str, Any], default: str) -> str:
    known = ("linspace", "leading", "trailing")
    return scheduler_settings(config).choice("timestep_spacing", known, default)


def levels_at(
    config: Mapping[str, Any], timesteps: np.ndarray, set_alpha_to_one: bool
) -> Levels:
    """The levels of whole timesteps; below 0 lies the level to end at."""
    settings = scheduler_settings(config)
    to_one = settings.flag("set_alpha_to_one", set_alpha_to_one)
    alphas_cumprod = read_alphas_cumprod(config)
    last = 1.0 if to_one else alphas_cumprod[0]
    abar = np.append(alphas_cumprod, last)[np.maximum(timesteps.astype(int), -1)]
    return Levels(np.sqrt(abar), np.sqrt(1 - abar))


def levels_of(sigmas: np.ndarray) -> Levels:
    signal = 1 / np.sqrt(1 + sigmas**2)
    return Levels(signal, sigmas * signal)


def sigma_table(config: Mapping[str, Any]) -> Float64[np.ndarray, "T"]:
    """sigma of each timestep, ascending and finite."""
    abar = read_alphas_cumprod(config)
    if abar[-1] == 0:
        abar[-1] = _SMALLEST_ALPHA_CUMPROD
    return np.sqrt((1 - abar) / abar)


def karras_sigmas(largest: float, smallest: float, num_steps: int) -> np.ndarray:
    """Karras et al. 2022, eq. 5, without the zero at its end."""
    ends = np.array([largest, smallest]) ** (1 / _KARRAS_RHO)
    return np.linspace(*ends, num_steps) ** _KARRAS_RHO


def timesteps_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Timesteps of these sigmas, interpolated between whole ones in log sigma."""
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))


def last_sigma(config: Mapping[str, Any], table: np.ndarray) -> float:
    """Where the last step leads: to no noise, or to that of timestep 0."""
    settings = scheduler_settings(config)
    ends = settings.choice("final_sigmas_type", ("zero", "sigma_min"), "zero")
    return 0.0 if ends == "zero" else table[0]
