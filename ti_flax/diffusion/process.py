"""The forward diffusion process and what the UNet is trained to predict."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Key

from ti_flax.runtime.errors import UserError, shown
from ti_flax.runtime.json_settings import Settings

MAX_TIMESTEPS = 100_000


# Rectified flows, and what is like `diffusion.edm`.
_OTHER_PROCESSES = ("EDM", "FlowMatch")


class Ddpm(NamedTuple):
    """The noising process: times, corruption, target and weight of an example.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), t = 0 ... T - 1.

    (Ho et al. 2020, eq. 4.)
    """

    alphas_cumprod: Float[Array, "T"]
    prediction_type: str

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.alphas_cumprod.shape[0]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "Ddpm":
        """Reads `scheduler_config.json`.

        Raises `UserError` for an unknown beta schedule or prediction type, and for a
        scheduler of another process, whose file has no betas.
        """
        name = config.get("_class_name")
        if isinstance(name, str) and name.startswith(_OTHER_PROCESSES):
            raise UserError(
                f"scheduler: {shown(name)} is of another noising process, supported is "
                "that of Ho et al. 2020 (betas) and of Karras et al. 2022 (EDM); use a "
                "Stable Diffusion 1.x, 2.x or SDXL model"
            )
        return cls(
            jnp.asarray(read_alphas_cumprod(config), jnp.float32),
            read_prediction_type(config),
        )

    def draw_times(self, key: Key[Array, ""]) -> Int[Array, ""]:
        """The time of one example: uniform over 0 ... T - 1."""
        return jax.random.randint(key, (), 0, self.num_timesteps)

    def spread_times(self, index: Int[Array, "B"], count: int) -> Int[Array, "B"]:
        """The middles of `count` equal parts of 0 ... T; `index` says which of them."""
        return (2 * index + 1) * self.num_timesteps // (2 * count)

    def told(self, timesteps: Int[Array, "B"]) -> Int[Array, "B"]:
        """What the UNet is told of the times: their numbers."""
        return timesteps

    def weight(self, timesteps: Int[Array, "B"]) -> Float[Array, "B"]:
        """What an example's loss counts: 1 (Ho et al. 2020, L_simple)."""
        return jnp.ones(timesteps.shape)

    def add_noise(
        self,
        x0: Float[Array, "B *shape"],
        eps: Float[Array, "B *shape"],
        timesteps: Int[Array, "B"],
    ) -> Float[Array, "B *shape"]:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4)."""
        signal, noise = self._scales(timesteps, x0.ndim)
        return signal * x0 + noise * eps

    def target(
        self,
        x0: Float[Array, "B *shape"],
        eps: Float[Array, "B *shape"],
        timesteps: Int[Array, "B"],
    ) -> Float[Array, "B *shape"]:
        """What the UNet should predict: eps, or v (Salimans & Ho 2022, appendix D)."""
        return _TARGETS[self.prediction_type](
            x0, eps, *self._scales(timesteps, x0.ndim)
        )

    def _scales(self, timesteps: Int[Array, "B"], ndim: int) -> tuple[Array, Array]:
        alphas_cumprod = self.alphas_cumprod[timesteps]
        alphas_cumprod = alphas_cumprod.reshape(-1, *(1,) * (ndim - 1))
        return jnp.sqrt(alphas_cumprod), jnp.sqrt(1.0 - alphas_cumprod)


_TARGETS = {
    "epsilon": lambda x0, eps, signal, noise: eps,
    "v_prediction": lambda x0, eps, signal, noise: signal * eps - noise * x0,
}


def mse(
    prediction: Float[Array, "B *shape"],
    target: Float[Array, "B *shape"],
    weights: Float[Array, "B *place"] | None = None,
) -> Float[Array, "B"]:
    """Mean squared error of each example, float32 (Ho et al. 2020, eq. 14).

    `weights` are what the errors of each place count; the channels come last.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return mean_of_each(jnp.square(error), weights)


def mean_of_each(
    errors: Float[Array, "B *shape"], weights: Float[Array, "B *place"] | None
) -> Float[Array, "B"]:
    """The mean over each example, of errors times what their place counts."""
    if weights is not None:
        errors = errors * weights[..., None]
    return jnp.mean(errors, axis=tuple(range(1, errors.ndim)))


def scheduler_settings(config: Mapping[str, Any], instead: str = "") -> Settings:
    """The typed reader of `scheduler_config.json`."""
    return Settings(
        "scheduler",
        config,
        instead or "use a model that was trained with what is supported",
        "scheduler/scheduler_config.json",
    )


def read_alphas_cumprod(config: Mapping[str, Any]) -> Float64[np.ndarray, "T"]:
    """abar_t as `scheduler_config.json` says, rescaled to zero terminal SNR if so.

    Float64: a float32 product of 1000 factors drifts in the sixth digit. Raises
    `UserError` for an unknown beta schedule, and where abar does not fall from below 1
    to 0 at the earliest at its end.
    """
    settings = scheduler_settings(config)
    alphas_cumprod = np.cumprod(1.0 - _betas(settings))
    falls = np.all(np.diff(alphas_cumprod) < 0) and alphas_cumprod[0] < 1
    # What is left of the signal is a float32 to the UNet and its samplers.
    gone = alphas_cumprod < np.finfo(np.float32).tiny
    at_end = alphas_cumprod[-1] == 0 and not gone[:-1].any()
    if not falls or len(alphas_cumprod) < 2 or (gone.any() and not at_end):
        raise UserError(
            "scheduler: its betas are no noise schedule: expected a signal that falls "
            "at every timestep, of two or more, and is not gone before the last; use "
            "the scheduler/scheduler_config.json that came with the weights"
        )
    if settings.flag("rescale_betas_zero_snr", False):
        alphas_cumprod = _rescale_zero_snr(alphas_cumprod)
    return alphas_cumprod


def read_prediction_type(config: Mapping[str, Any]) -> str:
    """What the UNet predicts; raises `UserError` when it is neither eps nor v."""
    return scheduler_settings(config).choice("prediction_type", _TARGETS, "epsilon")


def _betas(settings: Settings) -> np.ndarray:
    if settings.has("trained_betas"):
        return np.asarray(settings.numbers("trained_betas", 0, 1), np.float64)
    steps = settings.integer("num_train_timesteps", 2, MAX_TIMESTEPS, 1000)
    # The defaults are those of diffusers' schedulers, and of Ho et al. 2020.
    start = settings.number("beta_start", 0, 1, 1e-4)
    end = settings.number("beta_end", 0, 1, 0.02)
    known = ("linear", "scaled_linear")
    if settings.choice("beta_schedule", known, "linear") == "linear":
        return np.linspace(start, end, steps, dtype=np.float64)
    return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2


def _rescale_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(abar) so that the last is 0 (Lin et al. 2023, alg. 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
