"""The loss and the noise that a configuration describes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.diffusion import timestep_tables
from ti_flax.diffusion.edm import Process
from ti_flax.diffusion.objective import Objective
from ti_flax.runtime.errors import UserError

_WEIGHTS = (
    "snr_gamma",
    "debiased_estimation_loss",
    "scale_v_pred_loss_like_noise_pred",
)


def make_objective(
    config: ObjectiveKeys, process: Process, examples_per_step: int
) -> Objective:
    """The objective of a run on this process.

    Raises `UserError` where a key does not suit the model: timesteps that it has not,
    a weight of v where it predicts noise, of either where it predicts neither, a weight
    that is infinite.
    """
    drawn = _between(config, "min_timestep", "max_timestep", process.num_timesteps)
    huber_c = None
    if config.loss_type != "l2":
        huber_c = timestep_tables.huber_thresholds(
            np.asarray(process.alphas_cumprod), config.huber_schedule, config.huber_c
        )
    return Objective(
        loss_type=config.loss_type,
        huber_c=None if huber_c is None else jnp.asarray(huber_c, jnp.float32),
        weights=_weights(config, process, drawn),
        cumulative=_cumulative(config, process.num_timesteps, drawn),
        strata=examples_per_step if config.stratified_timesteps else None,
        noise_offset=config.noise_offset,
        multires_noise_iterations=config.multires_noise_iterations,
        multires_noise_discount=config.multires_noise_discount,
        ip_noise_gamma=config.ip_noise_gamma,
    )


def _between(config: ObjectiveKeys, first_key: str, end_key: str, total: int) -> slice:
    """The timesteps from the value of one key up to that of another."""
    first, end = getattr(config, first_key), getattr(config, end_key)
    if first >= total:
        raise UserError(
            f"{first_key}: expected less than {total}, the model's number of "
            f"timesteps, found {first}; choose a smaller one"
        )
    if end is not None and end > total:
        raise UserError(
            f"{end_key}: expected at most {total}, the model's number of timesteps, "
            f"found {end}; leave it out for all"
        )
    return slice(first, total if end is None else end)


def _weights(
    config: ObjectiveKeys, process: Process, drawn: slice
) -> Float[Array, "T"] | None:
    """What each timestep counts; None where all count alike."""
    v = process.prediction_type == "v_prediction"
    asked = [key for key in _WEIGHTS if getattr(config, key)]
    if asked and process.prediction_type == "edm":
        raise UserError(
            f"{asked[0]}: expected a model that predicts noise or v, whose loss it "
            "weights, found one of EDM (Karras et al. 2022); leave it out"
        )
    snr = timestep_tables.snr_of(np.asarray(process.alphas_cumprod))
    factors = []
    if config.snr_gamma is not None:
        factors.append(timestep_tables.min_snr_weights(snr, config.snr_gamma, v))
    if config.debiased_estimation_loss:
        factors.append(timestep_tables.debiased_weights(snr, v))
    if config.scale_v_pred_loss_like_noise_pred:
        if not v:
            raise UserError(
                "scale_v_pred_loss_like_noise_pred: expected a model that predicts v, "
                "found one that predicts noise (epsilon); leave it out"
            )
        factors.append(timestep_tables.noise_like_weights(snr))
    if not factors:
        return None
    weights = np.prod(factors, axis=0)
    if not np.isfinite(weights[drawn]).all():
        last = int(np.flatnonzero(np.isfinite(weights))[-1]) + 1
        raise UserError(
            "debiased_estimation_loss: the model ends in pure noise (zero terminal "
            "SNR), where its weight 1 / sqrt(SNR) is infinite; expected max_timestep "
            f"{last} or less, or snr_gamma in its place"
        )
    return jnp.asarray(weights, jnp.float32)


def _cumulative(
    config: ObjectiveKeys, total: int, drawn: slice
) -> Float[Array, "T"] | None:
    """Share of the draws up to and with each timestep; None where all are alike."""
    biased = _biased(config, total)
    if biased is None and drawn == slice(0, total):
        return None
    shares = timestep_tables.biased_frequencies(
        total, biased or slice(0), config.timestep_bias_multiplier, drawn
    )
    # To end in 1 is to draw nothing after the last, whatever the sum was rounded to.
    return jnp.asarray(np.minimum(np.cumsum(shares) / shares.sum(), 1), jnp.float32)


def _biased(config: ObjectiveKeys, total: int) -> slice | None:
    """The timesteps that are drawn more or less often than others."""
    if config.timestep_bias_strategy == "none":
        return None
    if config.timestep_bias_strategy == "range":
        return _between(config, "timestep_bias_begin", "timestep_bias_end", total)
    count = int(config.timestep_bias_portion * total)
    if count == 0:
        raise UserError(
            "timestep_bias_portion: expected one timestep or more, found "
            f"{config.timestep_bias_portion:g} of the model's {total}; choose a larger "
            "share"
        )
    if config.timestep_bias_strategy == "earlier":
        return slice(0, count)
    return slice(total - count, total)
