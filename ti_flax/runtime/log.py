"""The log on the console, and the warnings of a run."""

import contextlib
import contextvars
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SUBJECT: contextvars.ContextVar["Subject | None"] = contextvars.ContextVar(
    "subject", default=None
)


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is by then: notebooks and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    def emit(self, record: logging.LogRecord) -> None:
        subject = _SUBJECT.get()
        if subject is None or not subject.silent:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        subject, told = _SUBJECT.get(), super().format(record)
        return told if subject is None else f"{subject.name}: {told}"

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
    listener = _Listener()
    log = logging.getLogger("ti_flax")
    log.addHandler(listener)
    try:
        yield listener.heard
    finally:
        log.removeHandler(listener)


class Subject:
    """What the log of a block is about: its lines begin with `name`.

    A context manager, to be entered as often as need be, by one thread at a time.

    Attributes:
        silent: whether they are not shown, only heard.
        heard: the warnings of all its blocks, each as one line.
    """

    def __init__(self, name: str, silent: bool = False) -> None:
        self.name, self.silent, self._listener = name, silent, _Listener()
        self._tokens: list[contextvars.Token[Subject | None]] = []

    @property
    def heard(self) -> list[str]:
        return self._listener.heard

    def __enter__(self) -> "Subject":
        if not self._tokens:
            self._listener.thread = threading.get_ident()
            logging.getLogger("ti_flax").addHandler(self._listener)
        self._tokens.append(_SUBJECT.set(self))
        return self

    def __exit__(self, *exception: object) -> None:
        _SUBJECT.reset(self._tokens.pop())
        if not self._tokens:
            logging.getLogger("ti_flax").removeHandler(self._listener)


class _Listener(logging.Handler):
    """Keeps warnings, of all threads or of one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        self.thread: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.thread in (None, record.thread):
            self.heard.append(" ".join(record.getMessage().split()))
