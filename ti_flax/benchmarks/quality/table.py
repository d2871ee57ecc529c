"""The numbers of the quality benchmark as text, in percent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ti_flax.benchmarks.quality.agreement import Agreement
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
) -> str:
    """All that is measured: accuracies, comparisons, and what the training took.

    Of each method, `methods` has the `steps` of its words and their `examples`.
    """
    parts = []
    for name, part in summary.items():
        if "accuracy" in part:
            parts.append(_accuracies(f"{name}s, % right", part, judges[name]))
        parts.append(_comparisons(f"{name}s" if name != "all" else name, part))
    parts.append(_training(methods))
    return "\n\n".join(parts)


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


def _training(methods: Mapping[str, dict]) -> str:
    rows = [["training", "steps a word", "examples in all"]]
    for name, method in methods.items():
        steps = method["steps"]
        told = f"{np.mean(steps):.0f} [{min(steps)}, {max(steps)}]"
        rows.append([name, told, str(method["examples"])])
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
