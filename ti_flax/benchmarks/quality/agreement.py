"""How far the two judges agree, and how well each reads what is drawn."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ti_flax.benchmarks.quality import held_out, judge, pixel_rules
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.benchmarks.quality.word_scores import Word
from ti_flax.quickstart.critters.drawing import Scene

# What both read, in pictures of objects and of styles.
_READ = {
    "object": ("body", "accent", "background"),
    "style": ("tint", "texture", "background"),
}

Found = Mapping[str, Int[np.ndarray, "N"]]


class Agreement(NamedTuple):
    """Of one attribute: the share of equal readings, and what of it is not chance.

    `judge_drawn` and `rules_drawn` are the shares of drawings that each reads right.
    """

    agree: float
    kappa: float
    judge_drawn: float
    rules_drawn: float


def agreements(
    keys: QualityKeys,
    words: Sequence[Word],
    pictures: UInt8[np.ndarray, "N H W 3"],
    found: Found,
) -> dict[str, dict[str, Agreement]]:
    """Objects and styles -> attribute -> agreement over all pictures of the words.

    `found` is what the judge has read. Drawn are the targets of the words, each once.
    """
    theirs = pixel_rules.read_attributes(pictures)
    properties = [held_out.property_of(word.target) for word in words]
    of = np.repeat(properties, len(pictures) // len(words))
    agreed: dict[str, dict[str, Agreement]] = {}
    for kind, names in _READ.items():
        targets = dict.fromkeys(
            word.target
            for word, each in zip(words, properties, strict=True)
            if each == kind
        )
        scenes = [
            scene
            for target in targets
            for scene in held_out.judged_scenes(target, keys.num_images, keys.seed)
        ]
        drawn = judge.draw_all(scenes)
        by_judge, by_rules = (
            _accuracy(read(drawn), scenes)
            for read in (judge.read_attributes, pixel_rules.read_attributes)
        )
        agreed[kind] = {
            name: Agreement(
                *_agreement(found[name][of == kind], theirs[name][of == kind]),
                by_judge[name],
                by_rules[name],
            )
            for name in names
        }
    return agreed


def _agreement(
    one: Int[np.ndarray, "N"], other: Int[np.ndarray, "N"]
) -> tuple[float, float]:
    """The share of equal readings, and Cohen's kappa (1960).

    Chance is what two would agree who say each value as often as these do; where both
    always say the same one, there is no kappa but NaN.
    """
    agree = float((one == other).mean())
    values = np.union1d(one, other)
    chance = float(sum((one == v).mean() * (other == v).mean() for v in values))
    return agree, (agree - chance) / (1 - chance) if chance < 1 else float("nan")


def _accuracy(found: Found, scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of scenes that were read right, by attribute."""
    true = np.transpose([judge.labels(scene) for scene in scenes])
    return {
        name: float((found[name] == values).mean())
        for name, values in zip(judge.ATTRIBUTES, true, strict=True)
        if name in found
    }
