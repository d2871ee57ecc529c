"""The numbers of the quality benchmark as text, in percent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ti_flax.benchmarks.quality import curve
from ti_flax.benchmarks.quality.agreement import Agreement
from ti_flax.benchmarks.quality.curve import Cost, Curve
from ti_flax.benchmarks.quality.scores import BACKGROUNDS, Estimate
from ti_flax.benchmarks.quality.summary import APPEARANCE, ASKED

# What is told of the judge and the pixel rules, in percent.
_JUDGES: Mapping[str, Callable[[Agreement], float]] = {
    "drawn, pixel rules": lambda each: 100 * each.rules_drawn,
    "judges agree": lambda each: 100 * each.agree,
    "kappa, %": lambda each: 100 * each.kappa,
}
_WITH_INTERVAL = (APPEARANCE, *BACKGROUNDS)


def table(
    summary: Mapping[str, dict],
    judges: Mapping[str, Mapping[str, Agreement]],
    methods: Mapping[str, dict],
    curves: Mapping[str, Mapping[str, Curve]],
) -> str:
    """All that is measured: accuracies, comparisons, curves, what the training took.

    Of each method, `methods` has the `steps` of its words, their `examples`, and how
    many went `forward` only.
    """
    parts = []
    for name, part in summary.items():
        if "accuracy" in part:
            parts.append(_accuracies(f"{name}s, % right", part, judges[name]))
        parts.append(_comparisons(_title(name), part))
    parts += [_curves(_title(name), part) for name, part in curves.items()]
    parts.append(_training(methods))
    return "\n\n".join(parts)


def _title(part: str) -> str:
    return part if part == "all" else f"{part}s"


def _accuracies(
    title: str, part: Mapping[str, dict], judges: Mapping[str, Agreement]
) -> str:
    """A row each group, a column each attribute; below, what the second judge says."""
    rows = [[title, "words", *part["accuracy"]]]
    for group, count in part["words"].items():
        cells = [
            _cell(name, estimates[group]) if group in estimates else ""
            for name, estimates in part["accuracy"].items()
        ]
        rows.append([group, str(count), *cells])
    for told, value in _JUDGES.items():
        cells = [
            f"{value(judges[name]):.1f}" if name in judges else ""
            for name in part["accuracy"]
        ]
        rows.append([told, "", *cells])
    return _aligned(rows)


def _comparisons(title: str, part: Mapping[str, dict]) -> str:
    """A row each method."""
    methods = part["methods"]
    rows = [{"": method, **_compared(each)} for method, each in methods.items()]
    heads = [*dict.fromkeys(head for row in rows for head in row if head)]
    cells = [[row.get(head, "") for head in ("", *heads)] for row in rows]
    return _aligned([[title, *heads], *cells])


def _compared(method: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a method by the heads of their columns."""
    cells = {}
    if "better_than_initializer" in method:
        drawn = method["share_of_drawn"]
        cells = {
            "beat initializer": str(method["better_than_initializer"]),
            "% of nouns": _percent(method["share_of_nouns"]),
            "% of described": _percent(method["share_of_described"]),
            "% of drawn": _percent(drawn[APPEARANCE]),
            f"{ASKED}, % of drawn": _percent(drawn[ASKED]),
            f"{ASKED} - nouns' of the tint": _percent(
                method["background_against_nouns"]
            ),
        }
    if "beside" in method:
        cells |= {
            f"{name} - {method['beside']}'s": _percent(method[name])
            for name in _WITH_INTERVAL
            if name in method
        }
    return cells


def _curves(title: str, part: Mapping[str, Curve]) -> str:
    """A row each method: appearance by steps, and what it cost to be near the last."""
    counts = sorted({p.cost.steps for each in part.values() for p in each.points[:-1]})
    own, first = next(iter(part.values())).learned
    share = f"{100 * curve.SHARE:.0f} % of"
    heads = [f"{share} {own}", f"{share} {first}'s"]
    rows = [[f"{title}, appearance after", *map(str, counts), "its end", *heads]]
    for method, each in part.items():
        *early, last = each.points
        cells = {point.cost.steps: _percent(point.appearance) for point in early}
        row = [method, *(cells.get(count, "") for count in counts)]
        row.append(_percent(last.appearance))
        rows.append([*row, *map(_cost, each.learned.values())])
    return _aligned(rows)


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "not reached"
    told = f"{cost.steps} steps, {cost.examples:.0f} examples"
    return told if cost.seconds is None else f"{told}, {cost.seconds:.1f} s"


def _training(methods: Mapping[str, dict]) -> str:
    rows = [["training", "steps a word", "examples in all"]]
    any_forward = any(method["forward"] for method in methods.values())
    if any_forward:
        rows[0].append("forward only")
    for name, method in methods.items():
        steps = method["steps"]
        told = f"{np.mean(steps):.0f} [{min(steps)}, {max(steps)}]"
        rows.append([name, told, str(method["examples"])])
        if any_forward:
            rows[-1].append(str(method["forward"]))
    return _aligned(rows)


def _cell(name: str, estimate: Estimate) -> str:
    whole = _percent(estimate)
    return whole if name in _WITH_INTERVAL else whole.partition(" ")[0]


def _percent(estimate: Estimate) -> str:
    mean, low, high = (100 * number for number in estimate)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what stands in them, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    head, *rest = [*zip(cells, widths, strict=True)]
    told = [head[0].ljust(head[1]), *(cell.rjust(width) for cell, width in rest)]
    return "  ".join(told).rstrip()
