"""index.html: a run of many concepts on one page, which links into their folders."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ti_flax import __version__
from ti_flax.reports import index_plots, metrics_log
from ti_flax.reports.index_plots import shown
from ti_flax.reports.page import REPORT_NAME
from ti_flax.runtime import atomic, pages

INDEX_NAME = "index.html"

# In the order of the page.
_STATES = ("failed", "training", "done", "waiting")
# The first of those that ti_flax.publishing.concept_folder writes.
_PICTURE = "concept_images/0.jpeg"


class Entry(NamedTuple):
    """Where a concept stands."""

    name: str  # its folder, relative to output_dir
    word: str  # placeholder_token
    state: str  # "waiting" | "training" | "done" | "failed"
    steps: int  # taken
    max_steps: int
    seconds: float  # of its training so far
    fixed_loss: float | None  # the last one
    first_fixed_loss: float | None
    reason: str  # why it failed, or why it ended early; else ""
    settings: dict[str, Any]  # what a sweep set for it; {} without


class _Facts(NamedTuple):
    """What lies in a concept's folder, as URLs; empty where something does not."""

    report: str = ""
    picture: str = ""
    prompt: str = ""
    # Steps and previews: the first and the last of the prompt.
    previews: Sequence[tuple[int, str]] = ()
    curve: str = ""


class IndexPage:
    """The page of an output folder, which remembers the concepts that have ended."""

    def __init__(self, output_dir: Path) -> None:
        """Reads nothing yet."""
        self._output_dir = output_dir
        self._ended: dict[tuple[str, str, int], _Facts] = {}

    def write(self, entries: Sequence[Entry], words_per_hour: float | None) -> None:
        """Writes the page; of the folders, those are read that may have changed.

        Args:
            entries: all concepts of the run, in its order.
            words_per_hour: concepts that end in an hour, once that is known.
        """
        ordered = sorted(entries, key=lambda entry: _STATES.index(entry.state))
        states = Counter(entry.state for entry in entries)
        html = pages.template("ti_flax.reports", "index.html.jinja").render(
            rows=[_row(entry, self._facts(entry)) for entry in ordered],
            states={state: states[state] for state in _STATES},
            words_per_hour=words_per_hour,
            left=_left(states["waiting"] + states["training"], words_per_hour),
            histogram=index_plots.histogram(
                [e.steps for e in entries if e.state == "done"]
            ),
            sweeps=_sweeps(entries),
            version=__version__,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        with atomic.atomic_path(self._output_dir / INDEX_NAME) as path:
            path.write_text(html, encoding="utf-8", errors="replace")

    def _facts(self, entry: Entry) -> _Facts:
        if entry.state == "waiting":
            return _Facts()
        key = (entry.name, entry.state, entry.steps)
        if key in self._ended:
            return self._ended[key]
        facts = _read(self._output_dir, entry.name)
        # What has just been learned may still be on its way to the disk.
        whole = entry.state == "done" and facts.report and facts.picture
        if whole or entry.state == "failed":
            self._ended[key] = facts
        return facts


def _read(output_dir: Path, name: str) -> _Facts:
    folder = output_dir / name

    def url(file: str) -> str:
        # As bytes: a folder's name need not be Unicode.
        path = os.fsencode(Path(name, file).as_posix())
        return quote(path) if os.path.isfile(folder / file) else ""

    facts = _Facts(report=url(REPORT_NAME), picture=url(_PICTURE))
    # Lines that somebody else wrote.
    with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):
        lines = list(metrics_log.read_lines(folder / metrics_log.VALIDATION_NAME))
        losses = [(line["step"], line["fixed_loss"]) for line in lines]
        facts = facts._replace(curve=index_plots.curve(losses))
        previewed = [(line["step"], line["previews"][0]) for line in lines]
        # A run that was resumed may have other prompts than before.
        prompt = previewed[-1][1]["prompt"]
        previews = [
            (step, url(preview["files"][0]))
            for step, preview in (previewed[0], previewed[-1])
            if preview["prompt"] == prompt
        ]
        found = {step: file for step, file in previews if file}
        facts = facts._replace(prompt=shown(prompt), previews=list(found.items()))
    return facts


def _row(entry: Entry, facts: _Facts) -> dict[str, Any]:
    """What the template shows of a concept."""
    return entry._asdict() | {
        "name": shown(entry.name),
        "word": shown(entry.word),
        "reason": shown(entry.reason),
        "time": _time(entry.seconds) if entry.state != "waiting" else "",
        "first": _loss(entry.first_fixed_loss),
        "last": _loss(entry.fixed_loss),
        "settings": {shown(k): shown(v) for k, v in entry.settings.items()},
        "facts": facts,
    }


def _sweeps(entries: Sequence[Entry]) -> list[index_plots.Sweep]:
    """A plot of each key that differs between concepts which have a loss."""
    evaluated = [e for e in entries if index_plots.is_number(e.fixed_loss)]
    found = []
    for key in dict.fromkeys(key for entry in evaluated for key in entry.settings):
        having = [entry for entry in evaluated if key in entry.settings]
        dots = [
            index_plots.Dot(e.name, e.settings[key], e.fixed_loss, e.state == "done")
            for e in having
        ]
        if len({shown(dot.value) for dot in dots}) > 1:
            found.append(index_plots.sweep(key, dots))
    return found


def _loss(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _left(concepts: int, words_per_hour: float | None) -> str:
    """How long the others will take; empty where that is not known."""
    if not concepts or not words_per_hour:
        return ""
    return _time(3600 * concepts / words_per_hour)
