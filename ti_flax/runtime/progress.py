"""Progress of long work: a bar on a terminal and in a notebook, lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"
_BYTES = "{desc}: {n_fmt}B of {total_fmt}B in {elapsed}, {remaining} left"


class Bar(tqdm):
    """tqdm's bar; in a file or a pipe, one line every 30 s of work that takes so long.

    kubectl, SLURM and nohup keep what a terminal would write over. With
    `starts_with_first`, the time is counted from the first update on, which may have
    waited for a compiler.
    """

    def __init__(
        self, *args: Any, starts_with_first: bool = False, **settings: Any
    ) -> None:
        self._starts = starts_with_first
        self._redraws = _redraws()
        if not self._redraws:
            settings |= {
                "file": _Lines(),
                "bar_format": _BYTES if settings.get("unit") == "B" else _LINE,
                "mininterval": _SECONDS,
                "delay": _SECONDS,
            }
        elif starts_with_first:
            settings["delay"] = sys.float_info.min  # shows nothing yet
        # miniters 1: tqdm learns from dispatches, which grow, to look too rarely.
        super().__init__(*args, miniters=1, **settings)

    def update(self, n: float | None = 1) -> bool | None:
        if not self._starts or self.disable:
            return super().update(n)
        self._starts = False
        self.n += n or 0
        self.initial = self.n
        self.unpause()
        if self._redraws:
            self.delay = 0
            return self.refresh()
        return None


class _Lines:
    """Writes what a bar shows as whole lines on stderr, each once.

    A bar that ends shows its last state, which it may have shown just before.
    """

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        shown = text.strip()
        if shown and shown != self._last:
            sys.stderr.write(f"{shown}\n")
            self._last = shown

    def flush(self) -> None:
        sys.stderr.flush()


def _redraws() -> bool:
    """Whether a carriage return goes back to the start of the line."""
    # A notebook's stream; that ipykernel is imported says nothing of where stderr goes.
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    return notebook or sys.stderr.isatty()
