"""The log on the console, and the warnings of a run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is by then: notebooks and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # whatever has a `write`
        return sys.stderr


_HANDLER = _StderrHandler()


def show_log() -> None:
    """Shows our own messages on stderr, each once however often this is called.

    Libraries stay silent: they log their search for devices, among others.
    """
    log = logging.getLogger("ti_flax")
    log.addHandler(_HANDLER)
    # Orbax, as soon as it is imported, makes the root show everything once more.
    log.propagate = False
    log.setLevel(logging.INFO)


@contextlib.contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Yields a list that gets each of our warnings, as one line."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(" ".join(record.getMessage().split()))

    listener = Listener(logging.WARNING)
    log = logging.getLogger("ti_flax")
    log.addHandler(listener)
    try:
        yield heard
    finally:
        log.removeHandler(listener)
