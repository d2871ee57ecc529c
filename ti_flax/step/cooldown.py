"""What is left to take once the fixed loss has settled: steps ever smaller.

At a constant learning rate the rows swing around what they have learned; a fall to 0 at
the end, and nowhere else, brings them to rest (warmup-stable-decay, Hu et al. 2024).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def last_step(settled: Int[Array, "S"], cooldown: Float[Array, "S"]) -> Int[Array, "S"]:
    """The step at which a slot has learned: `cooldown` times `settled` after that."""
    return settled + jnp.ceil(cooldown * settled).astype(jnp.int32)


def cooling_factor(
    settled: Int[Array, "S"], cooldown: Float[Array, "S"], step: Int[Array, "S"]
) -> Float[Array, "S"]:
    """What the learning rate after `step` steps is multiplied by; 1 until settled."""
    end = last_step(settled, cooldown)
    left = (end - step) / jnp.maximum(end - settled, 1)
    return jnp.where(settled > 0, left.clip(0, 1), 1.0)
