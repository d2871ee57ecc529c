"""Whether what a step keeps for its backward pass fits into a device's memory."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ti_flax.models.family import Family
from ti_flax.models.torch_params import param_shapes
from ti_flax.runtime import chips

# Bytes that a step without recomputation takes for one latent pixel of an example, for
# each of the denoiser's `kept_channels` and each byte of its dtype: estimates.
# `python -m ti_flax.train_compile` gives the true figure for TPUs, whose compiler by
# itself computes again what is cheap where memory is short: Stable Diffusion 1.5 in
# bfloat16 at 512 px takes 12.8 with 8 examples on a v5e, 7.1 with 40 and does not fit
# with 56; on a v6e it does not with 99.
_KEPT = {"tpu": 8.3}
# Of the same network in float32 on a CPU.
_KEPT_ELSEWHERE = 28
# The rest is the compiler's: scratch memory, fragments.
_USABLE = 0.9


def needs_remat(
    asked: bool | None, family: Family, latents: int, examples: int, mesh: Mesh
) -> bool:
    """The key `gradient_checkpointing`, or where it is none what memory asks for.

    `latents` are those of one picture, height times width.
    """
    if asked is not None:
        return asked
    return math.ceil(examples / mesh.size) > _room(family, latents, mesh)


def most_slots(
    family: Family, latents: int, examples: int, mesh: Mesh, most: int
) -> int:
    """How many slots, up to `most`, a step takes without recomputation; at least one.

    `latents` are those of one picture, `examples` those of a slot.
    """
    fitting = _room(family, latents, mesh) * mesh.size / examples
    return max(1, int(min(fitting, most)))


def _room(family: Family, latents: int, mesh: Mesh) -> float:
    """Examples on a device for which nothing need be computed again; whole, or inf."""
    net = family.denoiser.module
    width = net.kept_channels
    device = mesh.devices.flat[0]
    a_byte = _KEPT.get(device.platform, _KEPT_ELSEWHERE)
    kept = a_byte * latents * width * jnp.dtype(net.dtype).itemsize
    frozen = map(param_shapes, family.trained_through.values())
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves([*frozen]))
    room = (_USABLE * chips.device_memory(device) - held) / kept
    return room if math.isinf(room) else math.floor(room)
