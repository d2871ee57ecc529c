"""How long a process has been running, and where compiled programs are kept."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_age() -> float:
    """Seconds since this process was started; since this import where not on Linux."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    # proc(5): field 22, in clock ticks after boot; the name before ")" is field 2.
    started = float(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
