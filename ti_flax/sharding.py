"""One mesh for everything, and where arrays lie on it."""

import jax
import numpy as np
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
    axis_types = (AxisType.Auto, AxisType.Auto)
    grid = np.asarray(devices).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_examples(mesh: Mesh) -> NamedSharding:
    """The first axis, examples, split over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def check_batch(train_batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` when examples cannot be split evenly over the devices."""
    if train_batch_size % mesh.size:
        raise UserError(
            f"train_batch_size: {train_batch_size} examples do not split evenly over "
            f"{mesh.size} devices; use a multiple of {mesh.size}"
        )
