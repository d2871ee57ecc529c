"""What a process does at its start: its clock, kept programs, memory."""

import ctypes
import logging
import os
import sys
import time
from pathlib import Path

_log = logging.getLogger(__name__)

_IMPORTED = time.monotonic()

# Whether Linux uses large pages: for all memory, where it is advised, or never.
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES, _ADVISE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Starts this process again with glibc told to advise large pages for its memory.

    On a CPU the working memory of a step is taken anew for each dispatch, for SD 1.5
    in 600,000 pages of 4 KiB, and going through those takes a tenth to a fifth of the
    time. glibc reads its tunables when a process starts, and at no other time.
    """
    try:
        advised = "[madvise]" in _HUGE_PAGES.read_text()
    except OSError:  # not Linux
        return
    tunables = os.environ.get(_TUNABLES, "")
    if not advised or "glibc.malloc.hugetlb" in tunables:
        return
    os.environ[_TUNABLES] = ":".join(filter(None, (tunables, _ADVISE)))
    os.execv(sys.executable, sys.orig_argv)


def process_age() -> float:
    """Seconds since this process was started; since this import where not on Linux."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    # proc(5): field 22, in clock ticks after boot; the name before ")" is field 2.
    started = float(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Phases:
    """Where the time of a start goes; a phase ends where the next begins."""

    def __init__(self, first: str) -> None:
        """All of the process so far is the phase `first`."""
        self.seconds: dict[str, float] = {}
        self.logged = False
        self.end(first)

    def end(self, name: str) -> None:
        self.seconds[name] = process_age() - sum(self.seconds.values())

    def log(self) -> None:
        parts = (f"{seconds:.1f} s {name}" for name, seconds in self.seconds.items())
        _log.info(
            "first step %.1f s after the process began: %s",
            sum(self.seconds.values()),
            ", ".join(parts),
        )
        self.logged = True


def keep_compiled(folder: str | None) -> None:
    """Keeps compiled programs in a folder or at a gs:// address for later processes.

    A folder that JAX was given before, as by JAX_COMPILATION_CACHE_DIR, stays.
    """
    import jax

    if folder is None or jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    # By default only what took a second; a start is made of many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def give_back_freed() -> None:
    """Hands memory that was freed back to the system, where the C library is glibc.

    It would keep what a compiler took and freed, for SD 1.5 0.7 GiB to the end of the
    run.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
