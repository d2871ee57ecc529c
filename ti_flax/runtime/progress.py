"""Progress of long work: a bar on a terminal and in a notebook, lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"


class Bar(tqdm):
    """tqdm's bar; in a file or a pipe, one line every 30 s of work that takes so long.

    kubectl, SLURM and nohup keep what a terminal would write over.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        if not _redraws():
            settings |= {
                "file": _Lines(),
                "bar_format": _LINE,
                "mininterval": _SECONDS,
                "delay": _SECONDS,
            }
        # miniters 1: tqdm learns from dispatches, which grow, to look too rarely.
        super().__init__(*args, miniters=1, **settings)


class _Lines:
    """Writes what a bar shows as whole lines on stderr."""

    def write(self, text: str) -> None:
        if shown := text.strip():
            sys.stderr.write(f"{shown}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _redraws() -> bool:
    """Whether a carriage return goes back to the start of the line."""
    # A notebook's stream; that ipykernel is imported says nothing of where stderr goes.
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    return notebook or sys.stderr.isatty()
