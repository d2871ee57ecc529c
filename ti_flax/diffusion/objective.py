"""What an example's loss is, and how its time and its noise are drawn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ti_flax.diffusion import noise as noises
from ti_flax.diffusion.edm import Process
from ti_flax.diffusion.process import mean_of_each, mse


class Objective(NamedTuple):
    """The loss and the noise of a run; by default those of Ho et al. 2020 (L_simple).

    Tables are over the timesteps of the process; `diffusion.timestep_tables` makes
    them.
    """

    # One of `LOSSES`.
    loss_type: str = "l2"
    huber_c: Float[Array, "T"] | None = None
    # What an example of a timestep counts; None: 1.
    weights: Float[Array, "T"] | None = None
    # Share of the draws up to and with a timestep; None: as the process draws.
    cumulative: Float[Array, "T"] | None = None
    # Examples of a slot's step, over which its times are spread; None: each draws its
    # own.
    strata: int | None = None
    noise_offset: float = 0.0
    multires_noise_iterations: int = 0
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float = 0.0

    def draw_times(
        self,
        key: Key[Array, ""],
        process: Process,
        share: Float[Array, ""] | None = None,
    ) -> Int[Array, ""]:
        """The time of one example.

        With a `share`, below 1: the least up to and with which more than so much of all
        is drawn (the inverse of their cumulative distribution).
        """
        if self.cumulative is None and share is None:
            return process.draw_times(key)
        uniform = jax.random.uniform(key) if share is None else share
        if self.cumulative is None:
            return jnp.int32(process.num_timesteps * uniform)
        return jnp.searchsorted(self.cumulative, uniform, side="right")

    def spread(self, key: Key[Array, ""], index: Int[Array, ""]) -> Float[Array, ""]:
        """(i + u) / B for example i of B, of which each has a B-th of 0 ... 1.

        `key`, and so u from U(0, 1), is that of a step (Kingma et al. 2021, Variational
        Diffusion Models, appendix I.1: the low-discrepancy sampler).
        """
        share = (index + jax.random.uniform(key)) / self.strata
        # The last share is below 1 however it is rounded.
        return jnp.minimum(share, 1 - 2.0**-24)

    def shape_noise(
        self, key: Key[Array, ""], white: Float[Array, "h w c"]
    ) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"] | None]:
        """The noise of one example, and what x_t is made with where that is other.

        The second is eps + ip_noise_gamma N(0, 1); the target keeps eps (Ning et al.
        2023, Input Perturbation Reduces Exposure Bias in Diffusion Models; kohya's
        `ip_noise_gamma`).
        """
        offset_key, multires_key, input_key = jax.random.split(key, 3)
        noise, made_with = white, None
        if self.noise_offset:
            noise = noises.offset(offset_key, noise, self.noise_offset)
        if self.multires_noise_iterations:
            noise = noises.multires(
                multires_key,
                noise,
                self.multires_noise_iterations,
                self.multires_noise_discount,
            )
        if self.ip_noise_gamma:
            xi = jax.random.normal(input_key, noise.shape)
            made_with = noise + self.ip_noise_gamma * xi
        return noise, made_with

    def losses(
        self,
        prediction: Float[Array, "B *shape"],
        target: Float[Array, "B *shape"],
        times: Int[Array, "B"],
        weights: Float[Array, "B *place"] | None = None,
    ) -> Float[Array, "B"]:
        """The loss of each example, float32, times what its timestep counts.

        `weights` are what the errors of each place count, such as a mask.
        """
        c = None if self.huber_c is None else self.huber_c[times]
        each = LOSSES[self.loss_type](prediction, target, c, weights)
        return each if self.weights is None else each * self.weights[times]


PLAIN = Objective()


def _l2(
    prediction: Float[Array, "B *shape"],
    target: Float[Array, "B *shape"],
    c: Float[Array, "B"] | None,
    weights: Float[Array, "B *place"] | None,
) -> Float[Array, "B"]:
    return mse(prediction, target, weights)


def pseudo_huber(
    prediction: Float[Array, "B *shape"],
    target: Float[Array, "B *shape"],
    c: Float[Array, "B"],
    weights: Float[Array, "B *place"] | None = None,
) -> Float[Array, "B"]:
    """Mean of 2c (sqrt(e^2 + c^2) - c): e^2 where e is small, 2c|e| where it is large.

    kohya's `huber`, and `smooth_l1` times c (Charbonnier et al. 1997, with the factor
    that makes it squared error for large c). The difference is computed as
    e^2 / (sqrt(e^2 + c^2) + c), which keeps its digits for small e.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    c = c.reshape(-1, *(1,) * (error.ndim - 1))
    squared = jnp.square(error)
    each = 2 * c * squared / (jnp.sqrt(squared + jnp.square(c)) + c)
    return mean_of_each(each, weights)


def _smooth_l1(
    prediction: Float[Array, "B *shape"],
    target: Float[Array, "B *shape"],
    c: Float[Array, "B"],
    weights: Float[Array, "B *place"] | None,
) -> Float[Array, "B"]:
    return pseudo_huber(prediction, target, c, weights) / c


# Each `loss_type`: (prediction, target, threshold c of each example, what the errors of
# each place count) to the loss of each example, float32. c is None for l2 alone.
LOSSES: dict[str, Callable[..., Float[Array, "B"]]] = {
    "l2": _l2,
    "huber": pseudo_huber,
    "smooth_l1": _smooth_l1,
}
