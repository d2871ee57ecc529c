"""Whether what a step keeps for its backward pass fits into a device's memory."""

import logging
import math
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ti_flax.models.family import Family
from ti_flax.models.torch_params import param_shapes
from ti_flax.runtime import chips, sharding

_log = logging.getLogger(__name__)

# Bytes that a step without recomputation takes for one latent pixel of an example, for
# each of the denoiser's `kept_channels` and each byte of its dtype: estimates.
# `python -m ti_flax.train_compile` gives the true figure for TPUs, whose compiler by
# itself computes again what is cheap where memory is short: Stable Diffusion 1.5 in
# bfloat16 at 512 px takes 12.8 with 8 examples on a v5e, 7.1 with 40 and does not fit
# with 56; on a v6e it does not with 99.
_KEPT = {"tpu": 8.3}
# Of the same network in float32 on a CPU.
_KEPT_ELSEWHERE = 28
# The same where blocks are computed again: of SDXL in bfloat16 at 1024 px, 4 examples
# on a v5e.
_KEPT_AGAIN = 2.35
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


def fit_text(family: Family, latents: int, mesh: Mesh) -> Family:
    """The family, its largest text encoder in bfloat16 where memory asks for it.

    It does where no example has room beside the weights in float32, not even if blocks
    are computed again. Beside a denoiser in float32 all stays in float32, and where
    `fsdp` devices hold the weights together. `latents` are those of one picture.
    """
    is_half = jnp.dtype(family.denoiser.module.dtype) == jnp.bfloat16
    if not is_half or mesh.shape[sharding.FSDP] > 1:
        return family
    if _room(family, latents, mesh, _KEPT_AGAIN) >= 1:
        return family
    largest = max(family.text_encoders, key=lambda each: _held([each.module]))
    _log.warning(
        "%s is computed in bfloat16: beside the weights in float32, %.1f GiB, a "
        "device's %.1f GiB have no room for a step",
        largest.name,
        _held(family.trained_through.values()) / chips.GIB,
        chips.device_memory(mesh.devices.flat[0]) / chips.GIB,
    )
    return family.clone_text_encoder(largest.name, dtype=jnp.bfloat16)


def _room(
    family: Family, latents: int, mesh: Mesh, a_byte: float | None = None
) -> float:
    """Examples on a device beside the weights, each with so much kept; whole, or inf.

    By default what is kept where nothing is computed again.
    """
    net, device = family.denoiser.module, mesh.devices.flat[0]
    if a_byte is None:
        a_byte = _KEPT.get(device.platform, _KEPT_ELSEWHERE)
    kept = a_byte * latents * net.kept_channels * jnp.dtype(net.dtype).itemsize
    held = _held(family.trained_through.values())
    room = (_USABLE * chips.device_memory(device) - held) / kept
    return room if math.isinf(room) else math.floor(room)


def _held(networks: Iterable[nn.Module]) -> int:
    """Bytes of their weights."""
    leaves = jax.tree.leaves([*map(param_shapes, networks)])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
