"""One mesh for everything, and where arrays lie on it."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ti_flax.errors import UserError

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


def check_batch(train_batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` when examples cannot be split evenly over the devices."""
    if train_batch_size % mesh.size:
        raise UserError(
            f"train_batch_size: {train_batch_size} examples do not split evenly over "
            f"{mesh.size} devices; use a multiple of {mesh.size}"
        )
