"""Refusals of what strangers' files hold: soon, and in one short line."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ti_flax.runtime.errors import UserError

_SECONDS = 20
# Four lines of a terminal of 120 columns, beside the path of a file.
_LONGEST_LINE = 480


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """A pipe is waited for for ever: better a failure than a test that hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def line_of(path: Path, use: Callable[[Path], object], name: str) -> str:
    """The line that using the path ends in, with `name` in the path's place."""
    with in_time(), pytest.raises(UserError) as raised:
        use(path)
    line = str(raised.value)
    short = line.replace(str(path), name)
    assert line.isprintable() and len(short) <= _LONGEST_LINE, line
    return short
