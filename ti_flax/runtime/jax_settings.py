"""JAX's process-wide settings in a run, whose batches depend on its seed alone."""

import contextlib
import glob
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ti_flax.runtime import hosts
from ti_flax.runtime.errors import UserError, one_line

_log = logging.getLogger(__name__)

# Those that change random numbers or arithmetic, with JAX's defaults. What is a matter
# of checking only (NaNs, rank promotion, transfers) stays the user's.
_FIXED: dict[str, Any] = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": None,
}
_GPU_DEVICES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
# By any of them a machine or a user says that there is a TPU.
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_UNKNOWN = "WARNING"  # what libtpu leaves there when it found no TPU
# Google's, without the network card of its VMs: https://pci-ids.ucw.cz/read/PC/1ae0
_TPU_PCI = re.compile("PCI_ID=1AE0:(?!0042)")


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """JAX's defaults inside the block, or the decorated function, and then what was.

    Settings of the surroundings (JAX_ENABLE_X64, `jax.config.update`) that would change
    what a run computes are set aside, with a warning that names them.

    Raises:
        UserError: JAX has no device, as where JAX_PLATFORMS names an absent one.
    """
    before = {name: getattr(jax.config, name) for name in _FIXED}
    changed = {name: value for name, value in before.items() if value != _FIXED[name]}
    if changed:
        _log.warning(
            "JAX's settings are set aside for this run, whose result must not depend "
            "on them: %s",
            ", ".join(f"{name}={value}" for name, value in changed.items()),
        )
    try:
        for name in changed:
            jax.config.update(name, _FIXED[name])
        require_devices()
        yield
    finally:
        for name, value in changed.items():
            jax.config.update(name, value)


def require_devices() -> None:
    """Starts JAX's backend.

    Raises:
        UserError: JAX's reason why there is none, and what to do.
    """
    if not jax.config.jax_platforms and _is_cpu_only():
        # libtpu would look for a TPU for many seconds and fill the console.
        jax.config.update("jax_platforms", "cpu")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # An assertion without a word is JAX's answer where a plugin is not installed.
        reason = one_line(str(error) or "none of that kind, or no plugin for it")
        asked = jax.config.jax_platforms
        advice = (
            f"JAX_PLATFORMS is {asked}: unset it to use what there is, or install JAX "
            "for that device; if another process holds the device, end that one"
            if asked
            else "if another process holds the device, end that one; JAX_PLATFORMS=cpu "
            "does without"
        )
        raise UserError(f"JAX has no device ({reason}); {advice}") from error


def _is_cpu_only() -> bool:
    """Whether libtpu is installed where there is neither a TPU nor a GPU."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    told = [os.environ.get(name, _UNKNOWN) for name in _TPU_VARIABLES]
    if hosts.has_tpu() or not all(value.startswith(_UNKNOWN) for value in told):
        return False
    described = Path("/sys/bus/pci/devices").glob("*/uevent")
    on_bus = any(_TPU_PCI.search(device.read_text()) for device in described)
    return not on_bus and not any(map(glob.glob, _GPU_DEVICES))
