"""What a timestep counts, and how often it is drawn: tables over the T timesteps.

Float64. SNR_t = abar_t / (1 - abar_t); it is 0 at the end of a zero-SNR schedule. `v`
says that the UNet predicts v, whose squared error is that of eps times
(SNR + 1) / SNR (Salimans & Ho 2022, appendix D).
"""

import numpy as np
from jaxtyping import Float64

# kohya's limit of the SNR, which may be infinite at timestep 0.
_LARGEST_SNR = 1000.0


def snr_of(alphas_cumprod: np.ndarray) -> Float64[np.ndarray, "T"]:
    """SNR_t; infinite where abar_t is 1 in float32."""
    abar = np.asarray(alphas_cumprod, np.float64)
    with np.errstate(divide="ignore"):
        return abar / (1 - abar)


def min_snr_weights(
    snr: Float64[np.ndarray, "T"], gamma: float, v: bool
) -> Float64[np.ndarray, "T"]:
    """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v.

    Hang et al. 2023, sections 3.4 and 4.2; diffusers' `snr_gamma`, kohya's
    `min_snr_gamma`. Where SNR is 0, the weight is the limit: 1 for eps, for which both
    programs have 0 / 0, and 0 for v.
    """
    if v:
        return np.minimum(snr, gamma) / (snr + 1)
    return gamma / np.maximum(snr, gamma)


def debiased_weights(
    snr: Float64[np.ndarray, "T"], v: bool
) -> Float64[np.ndarray, "T"]:
    """1 / sqrt(SNR) for eps, 1 / (SNR + 1) for v, with SNR at most 1000.

    Yu et al. 2023 (Debias the Training of Diffusion Models) for eps; kohya's
    `debiased_estimation_loss` for both. Infinite for eps where SNR is 0.
    """
    snr = np.minimum(snr, _LARGEST_SNR)
    if v:
        return 1 / (snr + 1)
    with np.errstate(divide="ignore"):
        return 1 / np.sqrt(snr)


def noise_like_weights(snr: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
    """SNR / (SNR + 1), SNR at most 1000: the loss of v on the scale of that of eps.

    kohya's `scale_v_pred_loss_like_noise_pred`.
    """
    snr = np.minimum(snr, _LARGEST_SNR)
    return snr / (snr + 1)


def huber_thresholds(
    alphas_cumprod: np.ndarray, schedule: str, c: float
) -> Float64[np.ndarray, "T"]:
    """c_t, where the loss turns from squared to absolute error, as kohya has it.

    `constant`: c. `exponential`: c^(t / T). `snr`: (1 - c) / (1 + sigma_t)^2 + c with
    sigma = sqrt((1 - abar) / abar), which is c where no signal is left.
    """
    abar = np.asarray(alphas_cumprod, np.float64)
    total = len(abar)
    match schedule:
        case "constant":
            return np.full(total, c)
        case "exponential":
            return c ** (np.arange(total) / total)
    with np.errstate(divide="ignore"):
        sigma = np.sqrt((1 - abar) / abar)
    return (1 - c) / (1 + sigma) ** 2 + c


def biased_frequencies(
    total: int, biased: slice, multiplier: float, drawn: slice
) -> Float64[np.ndarray, "T"]:
    """How often each timestep is drawn; the sum is 1.

    Those of `biased` count `multiplier` times (diffusers' train_text_to_image_sdxl.py,
    `timestep_bias_*`); none outside `drawn` counts (kohya's `min_timestep`,
    inclusive, and `max_timestep`, exclusive).
    """
    counts = np.zeros(total)
    counts[drawn] = 1
    counts[biased] *= multiplier
    return counts / counts.sum()
