"""One mesh for everything, and where arrays lie on it."""

import logging
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)

DATA = "data"  # examples of a batch
FSDP = "fsdp"  # frozen weights too large for one device


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """A (data, fsdp) mesh over the devices; all of this job's by default."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise UserError(f"fsdp: {fsdp} does not divide the {len(devices)} devices")
    # Auto axes, spelt: jax.make_mesh made them Explicit in newer versions.
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        (DATA, FSDP),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, the same in every process, on every device."""
    # Not device_put, which refuses random keys where there are several processes.
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def over_examples(mesh: Mesh) -> NamedSharding:
    """The first axis, examples, split over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def over_fsdp(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """A frozen weight split along its largest axis that divides, else whole."""
    size = mesh.shape[FSDP]
    axes = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if size == 1 or not axes:
        return replicated(mesh)
    largest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, FSDP))


def whole(array: jax.Array) -> np.ndarray:
    """The values of an array on any devices, in every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def pad_examples(array: Array, mesh: Mesh) -> Array:
    """Repeats the last of the examples, the first axis, until all devices have as many.

    Padding beats the alternatives: with B examples on N devices each computes
    ceil(B / N), while a mesh of fewer devices, gcd(B, N), would compute B / gcd(B, N).
    """
    count = len(array)
    padded = padded_batch(count, mesh)
    if padded == count:
        return array
    return array[np.minimum(np.arange(padded), count - 1)]


def padded_batch(examples: int, mesh: Mesh) -> int:
    """The least multiple of the devices that holds so many examples."""
    return mesh.size * math.ceil(examples / mesh.size)


def warn_of_padding(train_batch_size: int, mesh: Mesh, slots: int = 1) -> None:
    """Says what batch would use every device, where this one does not."""
    examples = slots * train_batch_size
    padded = padded_batch(examples, mesh)
    if padded == examples:
        return
    keys = "train_batch_size" if slots == 1 else f"{slots} slots of train_batch_size"
    _log.warning(
        "%s: %d examples on %d devices take as long as %d; set a multiple of %d to use "
        "every device",
        keys,
        examples,
        mesh.size,
        padded,
        mesh.size,
    )
