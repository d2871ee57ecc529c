"""Accuracies of words, and confidence intervals of their means."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ti_flax.quickstart.critters import world

_RESAMPLES = 10_000
_LEVEL = 0.95
# The background of a concept's pictures, in pictures for which none was asked.
UNASKED = "own, unasked"
BACKGROUNDS = ("background", UNASKED)


class Score(NamedTuple):
    """Share of one word's pictures that are right, by attribute.

    `group` is the method that the word was learned by, or one of `methods.OTHERS`;
    `learnable_property` object or style; `tint` that of pictures that are right.
    `appearance` is the mean over all attributes but those of the background.
    """

    group: str
    learnable_property: str
    word: str
    accuracy: dict[str, float]
    tint: str = world.NO_STYLE.tint

    @property
    def appearance(self) -> float:
        parts = [a for name, a in self.accuracy.items() if name not in BACKGROUNDS]
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


def mean_of_differences(
    left: Sequence[float], right: Sequence[float], seed: int
) -> Estimate:
    """The mean difference of pairs, which are drawn again as pairs."""
    pairs = zip(left, right, strict=True)
    return mean_over_words([a - b for a, b in pairs], seed)


def ratio_of_pairs(
    above: Sequence[float], below: Sequence[float], seed: int
) -> Estimate:
    """The ratio of two means over the same words, which are drawn again as pairs.

    Infinite or NaN where the second mean is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = _resampled(above, seed) / _resampled(below, seed)
        return _estimate(ratios, float(np.mean(above) / np.mean(below)))


def _resampled(values: Sequence[float], seed: int) -> Float[np.ndarray, "resamples"]:
    drawn = np.random.default_rng(seed).integers(
        len(values), size=(_RESAMPLES, len(values))
    )
    return np.asarray(values)[drawn].mean(axis=1)


def _estimate(resampled: Float[np.ndarray, "resamples"], value: float) -> Estimate:
    tail = (1 - _LEVEL) / 2
    known = resampled[~np.isnan(resampled)]  # none, where all are 0 of 0
    low = high = np.nan
    if len(known):
        with np.errstate(invalid="ignore"):  # between infinite ones
            low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
