"""How long the start of a process takes, phase by phase."""

import logging
import os
import time
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

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


class Phases:
    """Where the time of a start goes; a phase ends where the next begins."""

    def __init__(self, first: str) -> None:
        """All of the process so far is the phase `first`."""
        self.seconds: dict[str, float] = {}
        self.logged = False
        self.end(first)

    def end(self, name: str) -> None:
        self.seconds[name] = process_age() - sum(self.seconds.values())

    def first_step(self, result: Any, shown: bool) -> None:
        """Ends the last phase when the first dispatch has run, and says all, once."""
        if shown and not self.logged:
            import jax

            jax.block_until_ready(result)
            self.end("rest of the compilation, first step")
            self.log()

    def log(self) -> None:
        parts = (f"{seconds:.1f} s {name}" for name, seconds in self.seconds.items())
        _log.info(
            "first step %.1f s after the process began: %s",
            sum(self.seconds.values()),
            ", ".join(parts),
        )
        self.logged = True
