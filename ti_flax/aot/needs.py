"""Compiles a program for a TPU nobody holds: whether it fits, and what it needs.

Figures are of one device. Low compiler effort takes a tenth of the time and finds
nearly the same memory (measured on two of the UNet's blocks).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from ti_flax.runtime import compilation

# EFFORT_O0 of XLA's ExecutionOptions.
_LOW_EFFORT = {"optimization_level": 9}
# Larger batches than this on one device are not looked for.
MOST_EXAMPLES = 512
_MOST_GROWTH = 4  # of a batch to the next that is tried


class Needs(NamedTuple):
    """Memory of a compiled program and what it moves, in bytes."""

    arguments: int
    temporaries: int
    peak: int
    traffic: float


def compile_for(lowered: jax.stages.Lowered) -> Needs | None:
    """What the program needs; none where the device's memory is too small for it."""
    try:
        compiled = lowered.compile(_LOW_EFFORT)
    except jax.errors.JaxRuntimeError as error:
        if not compilation.says_too_large(error):
            raise
        return None
    memory = compiled.memory_analysis()
    return Needs(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=compilation.peak_bytes(compiled),
        traffic=compiled.cost_analysis()["bytes accessed"],
    )


def largest_batch(
    needs_at: Callable[[int], Needs | None], first: int, memory: int, most: int
) -> int:
    """The largest batch a device that compiles; the next larger does not.

    It is 0 where nothing fits, and `most` where all that were tried fit.

    Args:
        needs_at: compiles for a batch.
        first: the batch to begin with.
        memory: the device's, in bytes.
        most: the largest batch to try.
    """
    tried: dict[int, Needs | None] = {0: None}

    def fits(batch: int) -> bool:
        if batch not in tried:
            tried[batch] = needs_at(batch)
        return tried[batch] is not None

    low, high = 0, most + 1  # fits, does not fit
    batch = min(first, most)
    while high - low > 1:
        if fits(batch):
            low = batch
        else:
            high = batch
        batch = max(_guess(tried, low, memory), low + 1)
        if batch >= high:
            # What fits says too little of what does not: memory grows faster there.
            batch = (low + high) // 2
    return low


def _guess(tried: dict[int, Needs | None], low: int, memory: int) -> int:
    """Where the memory should end: it grows in proportion to the batch, nearly."""
    fitting = sorted(batch for batch, needs in tried.items() if needs is not None)
    if not fitting:
        return 1
    if len(fitting) == 1:
        return 2 * low
    (less, more) = fitting[-2:]
    slope = (tried[more].peak - tried[less].peak) / (more - less)
    ahead = int((memory - tried[more].peak) / max(slope, 1.0))
    # Where blocks begin to be computed again, the slope says little.
    return min(more + ahead, _MOST_GROWTH * more)
