"""index.html: a run of many concepts on one page, which links into their folders."""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ti_flax import __version__
from ti_flax.reports import metrics_log
from ti_flax.reports.page import REPORT_NAME
from ti_flax.runtime import atomic, pages
from ti_flax.runtime.errors import one_line

INDEX_NAME = "index.html"

# In the order of the page.
_STATES = ("failed", "training", "done", "waiting")
# The first of those that ti_flax.publishing.concept_folder writes.
_PICTURE = "concept_images/0.jpeg"
# Of a curve, and about as many bars of the histogram.
_MAX_POINTS, _BARS = 60, 20
# A longer range than this has a logarithmic axis.
_LINEAR_RANGE = 20

# Places on an axis, as shares of its length, and what stands there.
Ticks = list[tuple[float, str]]


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
            histogram=_histogram([e.steps for e in entries if e.state == "done"]),
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


def write(
    output_dir: Path, entries: Sequence[Entry], words_per_hour: float | None
) -> None:
    """Writes the page once; an `IndexPage` writes it again for less."""
    IndexPage(output_dir).write(entries, words_per_hour)


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
        facts = facts._replace(curve=_curve(losses))
        shown = [(line["step"], line["previews"][0]) for line in lines]
        # A run that was resumed may have other prompts than before.
        prompt = shown[-1][1]["prompt"]
        previews = [
            (step, url(preview["files"][0]))
            for step, preview in (shown[0], shown[-1])
            if preview["prompt"] == prompt
        ]
        found = {step: file for step, file in previews if file}
        facts = facts._replace(prompt=_shown(prompt), previews=list(found.items()))
    return facts


def _row(entry: Entry, facts: _Facts) -> dict[str, Any]:
    """What the template shows of a concept."""
    return entry._asdict() | {
        "name": _shown(entry.name),
        "word": _shown(entry.word),
        "reason": _shown(entry.reason),
        "time": _time(entry.seconds) if entry.state != "waiting" else "",
        "first": _loss(entry.first_fixed_loss),
        "last": _loss(entry.fixed_loss),
        "settings": {_shown(k): _shown(v) for k, v in entry.settings.items()},
        "facts": facts,
    }


def _curve(losses: Sequence[tuple[int, float | None]]) -> str:
    """The points of an SVG polyline in a square of 100; empty for less than two."""
    known = [(step, loss) for step, loss in losses if loss is not None]
    if len(known) < 2:
        return ""
    known = [*known[: -1 : -(-len(known) // _MAX_POINTS)], known[-1]]
    steps, values = zip(*known, strict=True)
    wide, high = steps[-1] - steps[0] or 1, max(values) - min(values) or 1
    return " ".join(
        f"{100 * (step - steps[0]) / wide:.1f},{100 * (max(values) - loss) / high:.1f}"
        for step, loss in known
    )


def _histogram(steps: Sequence[int]) -> list[tuple[str, int]]:
    """Steps and how many concepts took them, for each bar; 0 steps have none."""
    if not steps:
        return []
    width = math.ceil(_round_step(max([1, *steps]) / _BARS))
    counts = Counter(-(-taken // width) for taken in steps)
    return [
        (f"{(bar - 1) * width + 1} to {bar * width}", counts[bar])
        for bar in range(1, max(counts) + 1)
    ]


class _Sweep(NamedTuple):
    """The plot of a swept key; places are shares of the axes, from the lower left.

    Dots are x, y, what they say and whether the concept is done.
    """

    key: str
    kind: str
    dots: list[tuple[float, float, str, bool]]
    x_ticks: Ticks
    y_ticks: Ticks


def _sweeps(entries: Sequence[Entry]) -> list[_Sweep]:
    """A plot of each key that differs between concepts which have a loss."""
    evaluated = [e for e in entries if math.isfinite(_number(e.fixed_loss))]
    found = []
    for key in dict.fromkeys(key for entry in evaluated for key in entry.settings):
        having = [entry for entry in evaluated if key in entry.settings]
        values = [entry.settings[key] for entry in having]
        if len({_shown(value) for value in values}) < 2:
            continue
        kind, x, x_ticks = _axis(values)
        _, y, y_ticks = _axis([entry.fixed_loss for entry in having], linear=True)
        dots = [
            (
                *place,
                f"{_shown(entry.name)}: {_shown(value)}, {entry.fixed_loss:.4f}",
                entry.state == "done",
            )
            for *place, entry, value in zip(x, y, having, values, strict=True)
        ]
        found.append(_Sweep(_shown(key), kind, dots, x_ticks, y_ticks))
    return found


def _axis(
    values: Sequence[Any], linear: bool = False
) -> tuple[str, list[float], Ticks]:
    """The kind of an axis, where `values` are on it, and its ticks.

    Numbers have 5% of room at both ends; what is no number has a category.
    """
    numbers = [_number(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        texts = [_shown(value) for value in values]
        names = list(dict.fromkeys(texts))
        places = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        ticks = [(place, name) for name, place in places.items()]
        return "text", [places[text] for text in texts], ticks
    low, high = min(numbers), max(numbers)
    if linear or low <= 0 or high <= _LINEAR_RANGE * low:
        kind, scaled, marks = "linear", float, _round_numbers(low, high)
    else:
        kind, scaled, marks = "log", math.log10, _powers(low, high)
    start, wide = scaled(low), scaled(high) - scaled(low)

    def place(number: float) -> float:
        return 0.05 + 0.9 * (scaled(number) - start) / wide if wide else 0.5

    return kind, list(map(place, numbers)), [(place(m), f"{m:.4g}") for m in marks]


def _number(value: Any) -> float:
    """Not finite where it is none that a plot can show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e100 else math.inf


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten: the next that is not less."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= rough * (1 - 1e-9))


def _round_numbers(low: float, high: float) -> list[float]:
    if high - low < 1e-12 * abs(high) + 1e-100:
        return [low]
    step = _round_step((high - low) / 4)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten; of a short range, their doubles and fivefolds as well."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first < 4 else (1,)
    powers = range(first, last + 1, 1 + (last - first) // 8)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def _shown(value: Any) -> str:
    """A line of text, as JSON where it is none; numbers have six digits."""
    match value:
        case str() | Path():
            text = str(value)
        case float():
            text = f"{value:.6g}"
        case _:
            text = json.dumps(value, ensure_ascii=False, default=str)
    return one_line(text) if text.strip() else ""


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
