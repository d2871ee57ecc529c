"""Drawn pictures on disk, so that drawing does not hold up training."""

from multiprocessing import Pool
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ti_flax.quickstart.critters import drawing, world
from ti_flax.runtime import atomic

_CHUNK = 250


def drawn_pictures(
    path: Path, seed: int, count: int, workers: int = 2
) -> UInt8[np.ndarray, "N H W 3"]:
    """Pictures 0..count-1 of the training set, memory-mapped; drawn once, then reused.

    `path` (.npy) belongs to one seed and count: the caller names it after them.
    """
    if not path.exists():
        starts = range(0, count, _CHUNK)
        jobs = [(seed, start, min(start + _CHUNK, count)) for start in starts]
        shape = (count, drawing.SIDE, drawing.SIDE, 3)
        with atomic.atomic_path(path) as temporary, Pool(workers) as pool:
            pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for start, chunk in zip(starts, pool.imap(_draw_chunk, jobs), strict=True):
                pictures[start : start + len(chunk)] = chunk
            pictures.flush()
    return np.load(path, mmap_mode="r")


def _draw_chunk(job: tuple[int, int, int]) -> UInt8[np.ndarray, "N H W 3"]:
    seed, start, stop = job
    scenes = (world.training_scene(seed, i) for i in range(start, stop))
    return np.stack([drawing.draw(scene) for scene in scenes])
