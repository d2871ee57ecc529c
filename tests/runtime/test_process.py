"""What a process does at its start, and gives back when that is over."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ti_flax.runtime import process

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
    process.give_back_freed()
    library.free(ctypes.c_void_p(pieces[-1]))
    assert kept - resident() > 0.9 * _PIECE * len(pieces)


_START = """
import os, pathlib, sys
from ti_flax.runtime import process
process._HUGE_PAGES = pathlib.Path(sys.argv[1])
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:], flush=True)
process.use_huge_pages()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="replaces the process")
@pytest.mark.parametrize("before", [None, "glibc.malloc.check=0"])
def test_the_process_starts_again_to_get_large_pages(tmp_path, before):
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    environment = {key: v for key, v in os.environ.items() if key != "GLIBC_TUNABLES"}
    if before:
        environment["GLIBC_TUNABLES"] = before
    command = [sys.executable, "-c", _START, setting, "--key", "two words"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    first, second = ran.stdout.splitlines()  # and no third
    pid, found, *arguments = first.split(" ")
    assert found == str(before)
    wanted = ":".join(filter(None, (before, "glibc.malloc.hugetlb=1")))
    assert second.split(" ") == [pid, wanted, *arguments]


@pytest.mark.parametrize(
    ("setting", "tunables"),
    [
        ("[always] madvise never", ""),
        ("always madvise [never]", ""),
        (None, ""),  # not Linux
        ("always [madvise] never", "glibc.malloc.hugetlb=0"),
    ],
)
def test_the_process_goes_on_where_nothing_would_change(
    tmp_path, monkeypatch, setting, tunables
):
    enabled = tmp_path / "enabled"
    if setting is not None:
        enabled.write_text(setting)
    monkeypatch.setattr(process, "_HUGE_PAGES", enabled)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    process.use_huge_pages()
