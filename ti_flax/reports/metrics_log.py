"""The files of numbers and pictures that a run leaves, and going on with them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ti_flax.runtime import atomic

METRICS_NAME = "metrics.jsonl"
VALIDATION_NAME = "validation.jsonl"
WARNINGS_NAME = "warnings.txt"
SAMPLES_NAME = "samples"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of such a file, without one that was cut short."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def open_lines(path: Path, start: int) -> TextIO:
    """Opens for more lines, without those of steps after `start`; all, if it is 0."""
    if start == 0 or not path.exists():
        return path.open("w", encoding="utf-8")
    kept = [line for line in read_lines(path) if line["step"] <= start]
    with (
        atomic.atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for line in kept:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path.open("a", encoding="utf-8")


def remove_samples(folder: Path) -> None:
    """Removes the previews of another run: they would pass for those of this one."""
    for path in folder.glob("*"):
        if re.fullmatch(r"step_\d+|control", path.name):
            shutil.rmtree(path)
