"""Learning-rate schedules, optimizers of active rows, and what holds rows short."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from ti_flax.step.state import Rows

# The published code's, so that a gradient of rounding alone takes no whole step.
_DIRECTIONAL_EPSILON = 1e-8

NO_FACTORS: Mapping[str, float] = MappingProxyType({})


class Hold(NamedTuple):
    """What keeps rows from outgrowing the vocabulary, after each step.

    `clip`: no row is longer than the bank's `norm`; `median`: each is as long as that;
    `initializer`: each is as long as it was where it started; `decay`: each goes the
    share `rate`, times the learning rate, of its way back there. Rows of the text
    encoders `still`, which learn nothing, stay.
    """

    kind: Literal["clip", "median", "initializer", "decay"]
    rate: float
    still: tuple[str, ...] = ()

    def __call__(
        self,
        rows: Float[Array, "K D"],
        initial: Float[Array, "K D"],
        norm: Float[Array, ""],
        learning_rate: Float[Array, ""],
    ) -> Float[Array, "K D"]:
        if self.kind == "decay":
            return rows - learning_rate * self.rate * (rows - initial)
        if self.kind == "initializer":
            norm = _lengths(initial)
        # A row of zeros has no direction to be lengthened in.
        scale = norm / jnp.maximum(_lengths(rows), jnp.finfo(rows.dtype).tiny)
        return rows * (jnp.minimum(scale, 1) if self.kind == "clip" else scale)

    def of_slots(
        self,
        rows: Rows,
        initial: Rows,
        norms: dict[str, Float[Array, "S"]],
        learning_rate: Float[Array, "S"],
        active: Bool[Array, "S K"],
    ) -> Rows:
        """The rows of all slots by text encoder; those not active stay as they are."""

        def held(rows: Array, initial: Array, norm: Array) -> Array:
            new = jax.vmap(self)(rows, initial, norm, learning_rate)
            return jnp.where(active[..., None], new, rows)

        return {
            name: each if name in self.still else held(each, initial[name], norms[name])
            for name, each in rows.items()
        }


def learning_rate_schedule(
    name: str,
    peak: float,
    warmup_steps: int,
    max_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
    decay_steps: int = 0,
) -> optax.Schedule:
    """Learning rate as a function of the steps taken, as diffusers' `get_scheduler`.

    All but `constant` rise linearly from 0 over `warmup_steps`. `warmup_stable_decay`
    is transformers' (Hu et al. 2024, MiniCPM): it falls linearly to 0 over the last
    `decay_steps`.
    """
    rest = max(max_steps - warmup_steps, 1)

    def restarts(count: Int[Array, ""]) -> Float[Array, ""]:
        progress = count / rest
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * ((num_cycles * progress) % 1.0)))
        return jnp.where(progress < 1.0, peak * cosine, 0.0)

    match name:
        case "constant":
            return optax.constant_schedule(peak)
        case "constant_with_warmup":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
        case "cosine_with_restarts":
            after = restarts
        case "polynomial":
            after = optax.polynomial_schedule(peak, 1e-7, power, rest)
        case "warmup_stable_decay":
            stable = optax.constant_schedule(peak)
            fall = optax.linear_schedule(peak, 0.0, decay_steps)
            after = optax.join_schedules([stable, fall], [rest - decay_steps])
    if warmup_steps == 0:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, after], [warmup_steps])


def rates_of_steps(
    schedule: optax.Schedule, name: str, warmup_steps: int, max_steps: int
) -> Float32[np.ndarray, "T"]:
    """The learning rate of each step, up to where it stays as it is."""
    counts = jnp.arange(num_rates(name, warmup_steps, max_steps))
    return np.asarray(jax.vmap(schedule)(counts), np.float32)


def num_rates(name: str, warmup_steps: int, max_steps: int) -> int:
    """After how many steps the learning rate stays as it is."""
    return max_steps if schedule_has_end(name) else warmup_steps + 1


def schedule_has_end(name: str) -> bool:
    """Whether a schedule of `learning_rate_schedule` depends on the number of steps."""
    return name not in ("constant", "constant_with_warmup")


def adamw(
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    max_grad_norm: float | None,
    factors: Mapping[str, float] = NO_FACTORS,
) -> optax.GradientTransformationExtraArgs:
    """AdamW over one slot's rows (Loshchilov & Hutter 2019), of active rows only.

    `update` takes the slot's own `learning_rate`, a scalar, beside `active`. `factors`,
    by the name of the text encoder, multiply it for its rows.
    """

    def at(learning_rate: Float[Array, ""]) -> optax.GradientTransformation:
        # As a schedule, for it to be an array of the step and not of the optimizer.
        return optax.adamw(
            lambda count: learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay=weight_decay,
        )

    return _of_a_slot(at, max_grad_norm, factors)


class Start(NamedTuple):
    """The state of `directional`: the directions that rows had at first."""

    directions: dict[str, Float[Array, "K D"]]


def directional(
    prior: float,
    max_grad_norm: float | None,
    factors: Mapping[str, float] = NO_FACTORS,
) -> optax.GradientTransformationExtraArgs:
    """Steps over a sphere, to which a `Hold` at a length brings the active rows back.

    Directional Textual Inversion (Kim et al. 2025, arXiv 2512.13672; kunheek/dti): of a
    row e = m v of length m, v is learned. g = m dL/de - prior v_0, where v_0 is where v
    started (`prior` is kappa of a von Mises-Fisher distribution about it), without its
    part along v and divided by its length; e - m rate g is held at m again. The step is
    so the rate long, in radians, whatever the gradient.

    Arguments and `update` otherwise as `adamw`.
    """

    def init(rows: dict[str, Float[Array, "K D"]]) -> Start:
        return Start(jax.tree.map(_directions, rows))

    def along_the_sphere(grad: Array, row: Array, start: Array) -> Array:
        length, direction = _lengths(row), _directions(row)
        grad = length * grad - prior * start
        grad -= (grad * direction).sum(axis=-1, keepdims=True) * direction
        return length * grad / (_lengths(grad) + _DIRECTIONAL_EPSILON)

    def update(grads, state, rows):
        return jax.tree.map(along_the_sphere, grads, rows, state.directions), state

    sphere = optax.GradientTransformation(init, update)
    return _of_a_slot(
        lambda learning_rate: optax.chain(sphere, optax.scale(-learning_rate)),
        max_grad_norm,
        factors,
    )


def _lengths(rows: Float[Array, "K D"]) -> Float[Array, "K 1"]:
    return jnp.linalg.norm(rows, axis=-1, keepdims=True)


def _directions(rows: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """Rows of length 1; a row of zeros, such as padding is, stays as it is."""
    return rows / jnp.maximum(_lengths(rows), jnp.finfo(rows.dtype).tiny)


def _of_a_slot(
    at: Callable[[Float[Array, ""]], optax.GradientTransformation],
    max_grad_norm: float | None,
    factors: Mapping[str, float],
) -> optax.GradientTransformationExtraArgs:
    """An optimizer at each learning rate as one whose `update` takes the rate."""

    def whole(learning_rate: Float[Array, ""]) -> optax.GradientTransformationExtraArgs:
        steps = [at(learning_rate)]
        if factors:
            steps.append(_scale_by_encoder(factors))
        if max_grad_norm is not None:
            steps.insert(0, optax.clip_by_global_norm(max_grad_norm))
        return only_active_rows(optax.chain(*steps))

    def update(grads, state, rows=None, *, active, learning_rate):
        return whole(learning_rate).update(grads, state, rows, active=active)

    init = whole(jnp.float32(0)).init
    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_encoder(factors: Mapping[str, float]) -> optax.GradientTransformation:
    # The rate is a factor of all that an optimizer changes, AdamW's decay included.
    return optax.stateless(
        lambda updates, _: {
            name: factors.get(name, 1.0) * update for name, update in updates.items()
        }
    )


def only_active_rows(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Rows that are not active keep their value and their moments bit for bit.

    `update` takes `active`, bool [K]. (`optax.masked` is of no use here: it masks whole
    leaves, and passes the raw gradient through where its mask is false.)
    """

    def where_active(active: Bool[Array, "K"], new: Array, old: Array) -> Array:
        # Moments are [K, D], one row each; counters are scalars of the whole slot.
        mask = active[:, None] if new.ndim == 2 else active.any()
        return jnp.where(mask, new, old)

    def update(grads, state, rows=None, *, active):
        keep = functools.partial(where_active, active)
        # An inactive row's gradient must not count towards the norm that is clipped.
        grads = jax.tree.map(lambda g: keep(g, jnp.zeros_like(g)), grads)
        updates, new_state = inner.update(grads, state, rows)
        updates = jax.tree.map(lambda u: keep(u, jnp.zeros_like(u)), updates)
        return updates, jax.tree.map(keep, new_state, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
