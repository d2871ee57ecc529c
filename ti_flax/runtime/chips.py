"""TPU chips, and how much memory a device has."""

import math
import os
from typing import Any, NamedTuple

from jax.sharding import Mesh


class Chip(NamedTuple):
    """Published peaks of what JAX calls a device: FLOP/s in bfloat16, bytes, bytes/s.

    Of v2, v3 and 7x that is half a chip. https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float


GIB = 2**30
CHIPS = {
    "TPU v2": Chip(22.5e12, 8 * GIB, 350e9),
    "TPU v3": Chip(61.5e12, 16 * GIB, 450e9),
    "TPU v4": Chip(275e12, 32 * GIB, 1228e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1640e9),
    "TPU7x": Chip(1153.5e12, 96 * GIB, 3690e9),
}


def chip(mesh: Mesh) -> Chip:
    """The peaks of one device of a mesh of TPUs."""
    return CHIPS[mesh.devices.flat[0].device_kind]


def device_memory(device: Any) -> float:
    """Bytes of memory of a device, or of one that is only described; inf if unknown."""
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].hbm_bytes
    if device.platform == "cpu":
        if not hasattr(os, "sysconf"):  # Windows
            return math.inf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)
