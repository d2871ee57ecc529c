"""What a process gives back when its start is over."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from ti_flax import startup

_PIECE = 2**16  # too small for the C library to map each by itself


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    pieces = [library.malloc(ctypes.c_size_t(_PIECE)) for _ in range(4000)]
    for piece in pieces:
        ctypes.memset(piece, 1, _PIECE)
    for piece in pieces[:-1]:  # the last one keeps the heap from shrinking by itself
        library.free(ctypes.c_void_p(piece))
    kept = resident()
    startup.give_back_freed()
    library.free(ctypes.c_void_p(pieces[-1]))
    assert kept - resident() > 0.9 * _PIECE * len(pieces)
