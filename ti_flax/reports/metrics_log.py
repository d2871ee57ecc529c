"""The files of numbers and pictures that a run leaves, and adding to them on resume.

What is wrong with one of them is told, and costs no run.
"""

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Shaped

from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, one_line

_log = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
VALIDATION_NAME = "validation.jsonl"
WARNINGS_NAME = "warnings.txt"
SAMPLES_NAME = "samples"

# Longer than any line of a run: one of a file with holes may be as long as the file.
_MAX_LINE_BYTES = 1_000_000


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of such a file, without damaged ones; none when it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in _split(file):
            content = _parse(line)
            if content is not None:
                yield content


def columns(path: Path) -> dict[str, Shaped[np.ndarray, "N"]]:
    """The numbers of its lines by their key, those of a list each: `row_norm/0`.

    NaN where a line has none. What is neither a number nor a switch is left out.
    """
    found: dict[str, list[float | bool]] = {}
    count = 0
    for line in read_lines(path):
        for name, value in _numbers(line):
            column = found.setdefault(name, [])
            column += [math.nan] * (count - len(column)) + [value]
        count += 1
    return {
        name: np.array(column + [math.nan] * (count - len(column)))
        for name, column in found.items()
    }


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float | bool]]:
    for name, one in one_by_one(line):
        if one is None or isinstance(one, int | float):
            yield name, math.nan if one is None else one


def one_by_one(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Its values by their keys, those of a list each by its own: `row_norm/0`."""
    for key, value in line.items():
        if isinstance(value, list):
            yield from ((f"{key}/{index}", one) for index, one in enumerate(value))
        else:
            yield key, value


def open_lines(path: Path, start: int) -> TextIO:
    """Opens for more lines, without those of steps after `start`; all, if it is 0.

    Damaged lines are dropped, and a file that cannot be written is left as it is.
    """
    with told(path.name):
        if start > 0 and path.exists():
            _drop_lines(path, start)
        return path.open("a" if start else "w", encoding="utf-8")
    return open(os.devnull, "w", encoding="utf-8")


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Warns of what cannot be written; the run continues."""
    try:
        yield
    except UserError:
        raise
    # Whatever is wrong with a log, such as keys that somebody took out of a line.
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        _log.warning("%s: cannot be written (%s); the run goes on", name, reason)


def _drop_lines(path: Path, start: int) -> None:
    """Leaves the whole lines of the first `start` steps."""
    kept, damaged = [], 0
    with path.open("rb") as file:
        for line in _split(file):
            content = _parse(line)
            # A last line without an end was being written when the run was killed.
            damaged += content is None and line.endswith(b"\n")
            if content is not None and content["step"] <= start:
                kept.append(content)
    if damaged:
        _log.warning("%s: %d damaged lines are left out", path.name, damaged)
    with (
        atomic.atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for content in kept:
            file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _split(file: Any) -> Iterator[bytes]:
    """Lines with their ends; what is longer than a line of a run comes in pieces."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line of a run; None for what is no whole one."""
    try:
        content = json.loads(line) if line.endswith(b"\n") else None
    # Also what is not UTF-8; brackets without end.
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or type(content.get("step")) is not int:
        return None
    return content


def read_warnings(path: Path) -> list[str]:
    """The warnings of the run so far, as far as they can be read."""
    try:
        return path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def remove_samples(folder: Path) -> None:
    """Removes the previews of another run: they would pass for those of this one.

    What else is in their folders stays.
    """
    for path in folder.glob("*"):
        if re.fullmatch(r"step_\d+|control", path.name) and not path.is_symlink():
            for picture in path.glob("*.png"):
                if re.fullmatch(r"\d+_\d+\.png", picture.name):
                    picture.unlink()
            with contextlib.suppress(OSError):
                path.rmdir()
