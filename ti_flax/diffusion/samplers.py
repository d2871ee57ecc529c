"""From noise to latents: the steps of DDIM, Euler, DPM-Solver++ (2M), PNDM and LCM.

Latents are x_t = signal x_0 + noise eps in every sampler, with signal^2 = abar and
noise^2 = 1 - abar. A level is also named by sigma = noise / signal (Karras et al. 2022,
whose x is x_t / signal here). One scan runs them all: it sees a stepper and numbers,
which depend on the schedule alone and are computed by `schedulers` in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Latents = Float[Array, "B h w c"]


class Carry(NamedTuple):
    """Between steps: the latents, those one step earlier, and what was predicted.

    `outputs` are the last three predictions (x_0 in DPM-Solver++), the newest first.
    """

    x: Latents
    x_before: Latents
    outputs: tuple[Latents, Latents, Latents]


class Transfer(NamedTuple):
    """x_s = x x_t + prediction * (the UNet's prediction)."""

    x: Float[Array, "*N"]
    prediction: Float[Array, "*N"]


class Multistep(NamedTuple):
    """A transfer with the mean of four predictions, the newest first, as `weights`."""

    transfer: Transfer
    weights: Float[Array, "*N 4"]
    restart: Bool[Array, "*N"]


class TwoStep(NamedTuple):
    """x_s = x x_t + x0 (D + extrapolation * (D - D before)), where D is x_0."""

    denoise: Transfer
    x: Float[Array, "*N"]
    x0: Float[Array, "*N"]
    extrapolation: Float[Array, "*N"]


class Renewal(NamedTuple):
    """x_s = signal D + noise eps, where D is what `denoise` makes of x_t.

    eps is `fresh`, standard normal, of each step anew: `renewed` puts it in.
    """

    denoise: Transfer
    signal: Float[Array, "*N"]
    noise: Float[Array, "*N"]
    fresh: Float[Array, "*N B h w c"] | None = None


class Steps(NamedTuple):
    """The numbers of a sampler; coefficients have a leading axis of N evaluations."""

    start_scale: Float[Array, ""]
    timesteps: Float[Array, "N"]
    coefficients: Transfer | Multistep | TwoStep | Renewal

    def renewed(self, draw: Callable[[int], Float[Array, "N B h w c"]]) -> "Steps":
        """With noise for each of N steps, where they want any."""
        if not isinstance(self.coefficients, Renewal):
            return self
        fresh = draw(len(self.timesteps))
        return self._replace(coefficients=self.coefficients._replace(fresh=fresh))


Stepper = Callable[[Carry, Latents, Any], Carry]


class Sampler(NamedTuple):
    """A rule, which jit takes as static, and its numbers, which it takes as arrays."""

    stepper: Stepper
    steps: Steps


def ddim(carry: Carry, prediction: Latents, step: Transfer) -> Carry:
    """x_s = signal_s x_0 + noise_s eps (Song et al. 2021, eq. 12 with sigma = 0).

    In x / signal and sigma this is Euler's method (ibid., eq. 13; Karras et al. 2022,
    algorithm 1 without the correction): DDIM and Euler differ in their levels only.
    """
    x = step.x * carry.x + step.prediction * prediction
    return carry._replace(x=x)


def dpm_solver_2m(carry: Carry, prediction: Latents, step: TwoStep) -> Carry:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    x0 = step.denoise.x * carry.x + step.denoise.prediction * prediction
    x0_before = carry.outputs[0]
    extrapolated = x0 + step.extrapolation * (x0 - x0_before)
    x = step.x * carry.x + step.x0 * extrapolated
    return Carry(x, carry.x, (x0, *carry.outputs[:2]))


def plms(carry: Carry, prediction: Latents, step: Multistep) -> Carry:
    """Linear multistep PNDM (Liu et al. 2022, eq. 12), without Runge-Kutta steps.

    The second evaluation corrects the first step: it starts again from the latents of
    before and its prediction is not remembered.
    """
    outputs = (prediction, *carry.outputs)
    # Not a matrix product: those are rounded to bfloat16 on TPU.
    mean = sum(w * output for w, output in zip(step.weights, outputs, strict=True))
    x = jnp.where(step.restart, carry.x_before, carry.x)
    kept = tuple(
        jnp.where(step.restart, old, new)
        for old, new in zip(carry.outputs, outputs[:3], strict=True)
    )
    moved = step.transfer.x * x + step.transfer.prediction * mean
    return Carry(moved, carry.x, kept)


def lcm(carry: Carry, prediction: Latents, step: Renewal) -> Carry:
    """Multistep sampling of a consistency model (Luo et al. 2023, algorithm 3)."""
    denoised = step.denoise.x * carry.x + step.denoise.prediction * prediction
    return carry._replace(x=step.signal * denoised + step.noise * step.fresh)


def sample(
    stepper: Stepper,
    steps: Steps,
    predict: Callable[[Latents, Float[Array, ""]], Latents],
    noise: Latents,
) -> Latents:
    """Latents from standard normal `noise`; `predict` gets latents and a timestep."""
    zeros = jnp.zeros_like(noise)
    start = Carry(steps.start_scale * noise, zeros, (zeros, zeros, zeros))

    def body(carry: Carry, step: tuple[Array, Any]) -> tuple[Carry, None]:
        timestep, coefficients = step
        return stepper(carry, predict(carry.x, timestep), coefficients), None

    carry, _ = jax.lax.scan(body, start, (steps.timesteps, steps.coefficients))
    return carry.x


def guide(
    unconditional: Latents, conditional: Latents, guidance_scale: Float[Array, ""]
) -> Latents:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6 with w = scale - 1)."""
    return unconditional + guidance_scale * (conditional - unconditional)
