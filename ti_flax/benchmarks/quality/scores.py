"""Accuracies of words with their confidence intervals, as numbers and as a table."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_RESAMPLES = 10_000
_LEVEL = 0.95
# Groups beside those of the methods by which words were learned.
_INITIALIZER, _NOUN = "initializer", "noun"
# The background of a concept's pictures, in pictures for which none was asked.
UNASKED = "own, unasked"
_BACKGROUNDS = ("background", UNASKED)


class Score(NamedTuple):
    """Share of one word's pictures that are right, by attribute.

    `group` is initializer, noun or the method that the word was learned by;
    `learnable_property` object or style. `appearance` is the mean over all attributes
    but those of the background.
    """

    group: str
    learnable_property: str
    word: str
    accuracy: dict[str, float]

    @property
    def appearance(self) -> float:
        parts = [a for name, a in self.accuracy.items() if name not in _BACKGROUNDS]
        return float(np.mean(parts))


class Estimate(NamedTuple):
    mean: float
    low: float
    high: float


def mean_over_words(values: Sequence[float], seed: int) -> Estimate:
    """The mean and its 95 % bootstrap interval (percentiles; Efron 1979).

    Whole words are drawn again: the pictures of one word succeed or fail together, and
    an interval that takes them for independent is too narrow.
    """
    return _estimate(_resampled(values, seed), float(np.mean(values)))


def ratio_of_means(
    above: Sequence[float], below: Sequence[float], seed: int
) -> Estimate:
    """The ratio of two groups' means, each group drawn again on its own.

    Infinite or NaN where the second mean is 0: a model that knows none of its nouns.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled(above, seed) / _resampled(below, seed + 1)
        return _estimate(ratios, float(np.mean(above) / np.mean(below)))


def difference_of_means(
    left: Sequence[float], right: Sequence[float], seed: int
) -> Estimate:
    """The difference of two groups' means, each group drawn again on its own."""
    differences = _resampled(left, seed) - _resampled(right, seed + 1)
    return _estimate(differences, float(np.mean(left) - np.mean(right)))


def mean_of_differences(
    left: Sequence[float], right: Sequence[float], seed: int
) -> Estimate:
    """The mean difference of pairs, which are drawn again as pairs."""
    pairs = zip(left, right, strict=True)
    return mean_over_words([a - b for a, b in pairs], seed)


def _resampled(values: Sequence[float], seed: int) -> Float[np.ndarray, "resamples"]:
    drawn = np.random.default_rng(seed).integers(
        len(values), size=(_RESAMPLES, len(values))
    )
    return np.asarray(values)[drawn].mean(axis=1)


def _estimate(resampled: Float[np.ndarray, "resamples"], value: float) -> Estimate:
    tail = (1 - _LEVEL) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def summarise(scores: Sequence[Score], seed: int) -> dict[str, dict]:
    """For objects and for styles: each attribute's estimate, and the comparisons.

    `methods` has those of each method: beside initializers and nouns, and, all but the
    first, beside the first.
    """
    summary = {}
    for learnable_property in ("object", "style"):
        of: dict[str, list[Score]] = {}
        for score in scores:
            if score.learnable_property == learnable_property:
                of.setdefault(score.group, []).append(score)
        first, *others = [group for group in of if group not in (_INITIALIZER, _NOUN)]
        summary[learnable_property] = {
            "words": {group: len(members) for group, members in of.items()},
            "accuracy": _accuracies(of, seed),
            "methods": {
                first: _comparisons(of, first, seed),
                **{
                    other: _comparisons(of, other, seed)
                    | _beside(first, of[first], of[other], seed)
                    for other in others
                },
            },
        }
    return summary


def _accuracies(of: dict[str, list[Score]], seed: int) -> dict[str, dict]:
    """Attribute -> group -> estimate; `appearance` is the attributes' mean."""
    known = of[_NOUN][0].accuracy
    names = [name for name in known if name not in _BACKGROUNDS]

    def estimates(value) -> dict[str, Estimate]:
        return {
            group: mean_over_words([value(score) for score in members], seed)
            for group, members in of.items()
        }

    return {
        **{n: estimates(lambda s, n=n: s.accuracy[n]) for n in names},
        "appearance": estimates(lambda s: s.appearance),
        **{
            name: estimates(lambda s, name=name: s.accuracy[name])
            for name in _BACKGROUNDS
            if name in known
        },
    }


def _comparisons(
    of: dict[str, list[Score]], method: str, seed: int
) -> dict[str, object]:
    """How the words of a method do beside their initializers and beside the nouns.

    Both stand in the order of the concepts; words, once for each time of learning.
    """
    pairs = zip(of[method], itertools.cycle(of[_INITIALIZER]), strict=False)
    learned, noun = (_appearances(of[group]) for group in (method, _NOUN))
    asked, known = (_backgrounds(of[group]) for group in (method, _NOUN))
    return {
        "better_than_initializer": sum(a.appearance > b.appearance for a, b in pairs),
        "share_of_nouns": ratio_of_means(learned, noun, seed),
        "background_against_nouns": difference_of_means(asked, known, seed),
    }


def _beside(
    first: str, base: Sequence[Score], other: Sequence[Score], seed: int
) -> dict[str, object]:
    """Points that a method adds to the first one's, each word beside the same word."""
    values = {"appearance": (_appearances(other), _appearances(base))}
    for name in _BACKGROUNDS:
        if name in base[0].accuracy:
            values[name] = _backgrounds(other, name), _backgrounds(base, name)
    return {
        "beside": first,
        **{name: mean_of_differences(*pair, seed) for name, pair in values.items()},
    }


def _appearances(scores: Sequence[Score]) -> list[float]:
    return [score.appearance for score in scores]


def _backgrounds(scores: Sequence[Score], name: str = "background") -> list[float]:
    return [score.accuracy[name] for score in scores]


def table(summary: dict[str, dict], judge: dict[str, float]) -> str:
    """The summary as text, in percent, with the judge's own accuracy."""
    lines = []
    for learnable_property, part in summary.items():
        counts = part["words"]
        heads = [f"{group} ({count})" for group, count in counts.items()]
        lines.append(_row(f"{learnable_property}s, % right", [*heads, "judge"]))
        for name, estimates in part["accuracy"].items():
            cells = [_percent(estimates[group]) for group in counts]
            own = f"{100 * judge[name]:.1f}" if name in judge else ""
            lines.append(_row(name, [*cells, own]))
        for method, compared in part["methods"].items():
            lines += _told(method, counts[method], compared)
        lines.append("")
    return "\n".join(lines)


def _told(method: str, count: int, compared: dict[str, Any]) -> list[str]:
    better = f"{compared['better_than_initializer']} of {count}"
    share, lost = compared["share_of_nouns"], compared["background_against_nouns"]
    lines = [
        f"{method}: better than its initializer: {better}",
        f"{method}: share of the nouns' appearance: {_percent(share)} %",
        f"{method}: background beside the nouns': {_percent(lost)} points",
    ]
    if "beside" in compared:
        points = (
            f"{name} {_percent(compared[name])}"
            for name in ("appearance", *_BACKGROUNDS)
            if name in compared
        )
        lines.append(
            f"{method} beside {compared['beside']}, points: {'; '.join(points)}"
        )
    return lines


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:18}" + "".join(f"{cell:>22}" for cell in cells).rstrip()


def _percent(estimate: Estimate) -> str:
    mean, low, high = (100 * number for number in estimate)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
