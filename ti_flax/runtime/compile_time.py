"""How long a program took to compile the last time: what a waiting user is told."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax import monitoring

from ti_flax.runtime import atomic

_log = logging.getLogger(__name__)

_FOLDER = "jax_compilation_cache_dir"
_NAME = "ti_flax_compile_seconds.json"
# Shorter waits are not worth a line.
_TOLD = 2.0
_MAX_BYTES = 2**16
_here = threading.local()


def _heard(event: str, **_: object) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _here.found = True


monitoring.register_event_listener(_heard)


@contextlib.contextmanager
def noted(program: str) -> Iterator[None]:
    """Notes how long the block compiles, unless it finds the program compiled."""
    _here.found, began = False, time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    folder = _folder()
    if folder is None or _here.found or seconds < _TOLD:
        return
    known = _known(folder) | {_key(program): round(seconds, 1)}
    with contextlib.suppress(OSError):
        atomic.write_json(folder / _NAME, known)


def tell(program: str) -> None:
    """Says that a program is being compiled, and how long that took the last time."""
    folder = _folder()
    last = None if folder is None else _known(folder).get(_key(program))
    took = "" if last is None else f"; the last time it took {_shown(last)}"
    _log.info("compiling the %s%s", program, took)


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _key(program: str) -> str:
    return f"{program}, {jax.device_count()} x {jax.devices()[0].device_kind}"


def _folder() -> Path | None:
    """Where compiled programs are kept; None: nowhere, or at a gs:// address."""
    folder = getattr(jax.config, _FOLDER)
    if not folder or "://" in folder:
        return None
    return Path(folder)


def _known(folder: Path) -> dict[str, float]:
    """Seconds by program and devices; empty where there is no such file."""
    try:
        path = folder / _NAME
        if path.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: seconds
        for key, seconds in content.items()
        if isinstance(seconds, int | float) and 0 < seconds < 1e6
    }
