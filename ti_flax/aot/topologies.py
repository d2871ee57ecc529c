"""TPUs that nobody here holds: what they are made of, and their compiler.

The compiler is in `libtpu`, which needs no TPU. Call `prepare` before JAX starts.
"""

import os

import jax
from jax.sharding import Mesh

from ti_flax.runtime import sharding
from ti_flax.runtime.errors import UserError, one_line

_EXAMPLES = "v5e:1x1, v5e:2x4, v6e:2x2, v5p:2x2x1, v4:2x2x1"


def prepare() -> None:
    """Keeps JAX on the CPU, libtpu from looking for a TPU, and lets several load it."""
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )


def make_mesh(topology: str, fsdp: int = 1) -> Mesh:
    """The mesh over all devices of a topology such as v5e:2x4."""
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError(
            "topology: the TPU compiler is missing; pip install 'ti_flax[tpu]' (it "
            "needs no TPU)"
        ) from error
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    # Without it a v4 chip would be two devices.
    megacore = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology,
            chips_per_host_bounds=_host_bounds(shape),
            num_slices=1,
            **megacore,
        )
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = one_line(error)
        raise UserError(
            f"topology: {topology!r} is none that the TPU compiler knows ({reason}); "
            f"it is KIND:SHAPE, such as {_EXAMPLES}"
        ) from error
    return sharding.make_mesh(list(found.devices), fsdp)


def _host_bounds(shape: str) -> tuple[int, ...]:
    """Chips of one host: at most 2 x 2 x 1."""
    sides = [int(side) if side.isdigit() else 1 for side in shape.split("x")] + [1, 1]
    return tuple(min(side, most) for side, most in zip(sides, (2, 2, 1), strict=False))
