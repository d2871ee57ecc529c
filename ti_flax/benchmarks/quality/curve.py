"""How soon words are learned: their appearance after so many steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ti_flax.benchmarks.quality.scores import Estimate, Score, mean_over_words

# A word is learned from where on it has this share of a final appearance.
SHARE = 0.95
OWN = "its own"
_PARTS = {"object": ("object",), "style": ("style",), "all": ("object", "style")}


class Cost(NamedTuple):
    """Of one word, in the mean over those of a method, after so many steps at most.

    `examples` are the trained ones, those of a race with them, and a third of those
    that went forward only. `seconds` are those of its slot, without compilation; None
    where they were not measured.
    """

    steps: int
    examples: float
    seconds: float | None


class Point(NamedTuple):
    cost: Cost
    appearance: Estimate


class Curve(NamedTuple):
    """Of a method: its points from the fewest steps up, the last at its end.

    `learned` is what it cost to reach a share of a final appearance and keep it, by
    whose that is: its own, and that of the first method; None where it did not.
    """

    points: list[Point]
    learned: dict[str, Cost | None]


def group_after(method: str, steps: int) -> str:
    """The group of a method's words as they were after so many steps."""
    return f"{method}@{steps}"


def curves(
    scores: Sequence[Score], costs: Mapping[str, Sequence[Cost]], seed: int
) -> dict[str, dict[str, Curve]]:
    """The curves of all methods for objects, for styles, and for all words.

    Of all words there are those of methods that learn both. `costs` are, by method, the
    first one first, those of its points.
    """
    of: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        kind = (score.group, score.learnable_property)
        of.setdefault(kind, []).append(score.appearance)
    found: dict[str, dict[str, Curve]] = {}
    for part, kinds in _PARTS.items():
        points = {}
        for method, own in costs.items():
            if all((method, kind) in of for kind in kinds):
                groups = [group_after(method, cost.steps) for cost in own[:-1]]
                values = [
                    [value for kind in kinds for value in of[group, kind]]
                    for group in (*groups, method)
                ]
                points[method] = [
                    Point(cost, mean_over_words(each, seed))
                    for cost, each in zip(own, values, strict=True)
                ]
        found[part] = _with_learned(points)
    return found


def _with_learned(points: Mapping[str, Sequence[Point]]) -> dict[str, Curve]:
    first = next(iter(points))
    finals = {method: each[-1].appearance.mean for method, each in points.items()}
    return {
        method: Curve(
            [*own],
            {
                OWN: _learned(own, finals[method]),
                first: _learned(own, finals[first]),
            },
        )
        for method, own in points.items()
    }


def _learned(points: Sequence[Point], final: float) -> Cost | None:
    """The least cost from which on every mean is at least the share of a final one."""
    reached = None
    for point in reversed(points):
        if point.appearance.mean < SHARE * final:
            break
        reached = point.cost
    return reached
