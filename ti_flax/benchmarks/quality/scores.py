"""Accuracies of words with their confidence intervals, as numbers and as a table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_RESAMPLES = 10_000
_LEVEL = 0.95
_GROUPS = ("initializer", "learned", "noun")


class Score(NamedTuple):
    """Share of one word's pictures that are right, by attribute.

    `group` is one of initializer, learned and noun; `learnable_property` object or
    style. `appearance` is the mean over all attributes but the background.
    """

    group: str
    learnable_property: str
    word: str
    accuracy: dict[str, float]

    @property
    def appearance(self) -> float:
        parts = [a for name, a in self.accuracy.items() if name != "background"]
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
    """For objects and for styles: each attribute's estimate, and the comparisons."""
    summary = {}
    for learnable_property in ("object", "style"):
        of = {
            group: [
                score
                for score in scores
                if (score.group, score.learnable_property)
                == (group, learnable_property)
            ]
            for group in _GROUPS
        }
        summary[learnable_property] = {
            "words": {group: len(members) for group, members in of.items()},
            "accuracy": _accuracies(of, seed),
            **_comparisons(of, seed),
        }
    return summary


def _accuracies(of: dict[str, list[Score]], seed: int) -> dict[str, dict]:
    """Attribute -> group -> estimate; `appearance` is the attributes' mean."""
    names = [name for name in of["noun"][0].accuracy if name != "background"]

    def estimates(value) -> dict[str, Estimate]:
        return {
            group: mean_over_words([value(score) for score in members], seed)
            for group, members in of.items()
        }

    return {
        **{n: estimates(lambda s, n=n: s.accuracy[n]) for n in names},
        "appearance": estimates(lambda s: s.appearance),
        "background": estimates(lambda s: s.accuracy["background"]),
    }


def _comparisons(of: dict[str, list[Score]], seed: int) -> dict[str, object]:
    """How the learned words do beside their initializers and beside the nouns.

    Learned words and initializers stand in the same order, one of each per concept.
    """
    pairs = zip(of["learned"], of["initializer"], strict=True)
    learned, noun = ([s.appearance for s in of[group]] for group in ("learned", "noun"))
    asked, known = (
        [s.accuracy["background"] for s in of[group]] for group in ("learned", "noun")
    )
    return {
        "better_than_initializer": sum(a.appearance > b.appearance for a, b in pairs),
        "share_of_nouns": ratio_of_means(learned, noun, seed),
        "background_against_nouns": difference_of_means(asked, known, seed),
    }


def table(summary: dict[str, dict], judge: dict[str, float]) -> str:
    """The summary as text, in percent, with the judge's own accuracy."""
    titles = {
        "initializer": "initializer",
        "learned": "learned word",
        "noun": "known nouns",
    }
    lines = []
    for learnable_property, part in summary.items():
        counts = part["words"]
        heads = [f"{titles[group]} ({counts[group]})" for group in _GROUPS]
        lines.append(_row(f"{learnable_property}s, % right", [*heads, "judge"]))
        for name, estimates in part["accuracy"].items():
            cells = [_percent(estimates[group]) for group in _GROUPS]
            own = f"{100 * judge[name]:.1f}" if name in judge else ""
            lines.append(_row(name, [*cells, own]))
        lines += [
            f"better than its initializer: {part['better_than_initializer']} of "
            f"{counts['learned']}",
            f"share of the nouns' appearance: {_percent(part['share_of_nouns'])} %",
            "background beside the nouns': "
            f"{_percent(part['background_against_nouns'])} points",
            "",
        ]
    return "\n".join(lines)


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:18}" + "".join(f"{cell:>22}" for cell in cells).rstrip()


def _percent(estimate: Estimate) -> str:
    mean, low, high = (100 * number for number in estimate)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
