"""The plots of the index page, as places on axes, and values as it shows them."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.runtime.errors import one_line

# Of a curve, and about as many bars of the histogram.
_MAX_POINTS, _BARS = 60, 20
# A longer range than this has a logarithmic axis.
_LINEAR_RANGE = 20

# Places on an axis, as shares of its length, and what stands there.
Ticks = list[tuple[float, str]]


def curve(losses: Sequence[tuple[int, float | None]]) -> str:
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


def histogram(steps: Sequence[int]) -> list[tuple[str, int]]:
    """Steps and how many concepts took them, for each bar; 0 steps have none."""
    if not steps:
        return []
    width = math.ceil(_round_step(max([1, *steps]) / _BARS))
    counts = Counter(-(-taken // width) for taken in steps)
    return [
        (f"{(bar - 1) * width + 1} to {bar * width}", counts[bar])
        for bar in range(1, max(counts) + 1)
    ]


class Dot(NamedTuple):
    """A concept in the plot of a swept key."""

    name: str
    value: Any
    fixed_loss: float
    is_done: bool


class Sweep(NamedTuple):
    """The plot of a swept key; places are shares of the axes, from the lower left.

    Dots are x, y, what they say and whether the concept is done.
    """

    key: str
    kind: str
    dots: list[tuple[float, float, str, bool]]
    x_ticks: Ticks
    y_ticks: Ticks


def sweep(key: str, dots: Sequence[Dot]) -> Sweep:
    """The plot of a key over at least one dot."""
    kind, x, x_ticks = _axis([dot.value for dot in dots])
    _, y, y_ticks = _axis([dot.fixed_loss for dot in dots], linear=True)
    placed = [
        (
            *place,
            f"{shown(dot.name)}: {shown(dot.value)}, {dot.fixed_loss:.4f}",
            dot.is_done,
        )
        for *place, dot in zip(x, y, dots, strict=True)
    ]
    return Sweep(shown(key), kind, placed, x_ticks, y_ticks)


def is_number(value: Any) -> bool:
    """Whether a plot can show it."""
    return math.isfinite(_number(value))


def _axis(
    values: Sequence[Any], linear: bool = False
) -> tuple[str, list[float], Ticks]:
    """The kind of an axis, where `values` are on it, and its ticks.

    Numbers have 5% of room at both ends; what is no number has a category.
    """
    numbers = [_number(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        texts = [shown(value) for value in values]
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


def shown(value: Any) -> str:
    """A line of text, as JSON where it is none; numbers have six digits."""
    match value:
        case str() | Path():
            text = str(value)
        case float():
            text = f"{value:.6g}"
        case _:
            text = json.dumps(value, ensure_ascii=False, default=str)
    return one_line(text) if text.strip() else ""
