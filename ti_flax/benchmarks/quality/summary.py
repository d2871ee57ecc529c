"""What the scores of words say of the methods that they were learned by."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ti_flax.benchmarks.quality.methods import (
    DESCRIBED,
    DRAWN,
    INITIALIZER,
    NOUN,
    OTHERS,
)
from ti_flax.benchmarks.quality.scores import (
    BACKGROUNDS,
    Estimate,
    Score,
    mean_of_differences,
    mean_over_words,
    ratio_of_means,
    ratio_of_pairs,
)

ASKED, APPEARANCE = BACKGROUNDS[0], "appearance"
_PROPERTIES = ("object", "style")

Groups = Mapping[str, Sequence[Score]]


def summarise(scores: Sequence[Score], seed: int) -> dict[str, dict]:
    """For objects and for styles: each attribute's estimate, and the comparisons.

    `methods` has those of each method: beside initializers, nouns and drawn pictures,
    and, all but the first, beside the first. `all` has the last of these over all words
    that both have learned.
    """
    of = {name: _groups(scores, name) for name in _PROPERTIES}
    first, *others = [group for group in of["object"] if group not in OTHERS]
    summary: dict[str, dict] = {
        name: {
            "words": {group: len(members) for group, members in groups.items()},
            "accuracy": _accuracies(groups, seed),
            "methods": {
                method: _comparisons(groups, method, seed)
                for method in (first, *others)
                if method in groups
            },
        }
        for name, groups in of.items()
    }
    for other in others:
        for name, groups in of.items():
            if other in groups:
                compared = _beside(first, other, [groups], seed)
                summary[name]["methods"][other] |= compared
    if others:
        both = {m: [groups for groups in of.values() if m in groups] for m in others}
        summary["all"] = {
            "methods": {m: _beside(first, m, both[m], seed) for m in others}
        }
    return summary


def _groups(scores: Sequence[Score], learnable_property: str) -> Groups:
    of: dict[str, list[Score]] = {}
    for score in scores:
        if score.learnable_property == learnable_property:
            of.setdefault(score.group, []).append(score)
    return of


def _accuracies(of: Groups, seed: int) -> dict[str, dict[str, Estimate]]:
    """Attribute -> group -> estimate; `appearance` is the attributes' mean.

    Of pictures for which no background was asked there are no drawn ones.
    """
    known = of[NOUN][0].accuracy
    names = [name for name in known if name not in BACKGROUNDS]
    names += [APPEARANCE, *(name for name in BACKGROUNDS if name in known)]
    return {
        name: {
            group: mean_over_words(_values(members, name), seed)
            for group, members in of.items()
            if name == APPEARANCE or name in members[0].accuracy
        }
        for name in names
    }


def _comparisons(of: Groups, method: str, seed: int) -> dict[str, object]:
    """How a method's words do beside their initializers, nouns and targets.

    Learned and others stand in the order of the concepts; words, once for each time of
    learning.
    """
    words = of[method]
    pairs = zip(words, itertools.cycle(of[INITIALIZER]), strict=False)
    described, drawn = (
        [*itertools.islice(itertools.cycle(of[group]), len(words))]
        for group in (DESCRIBED, DRAWN)
    )
    return {
        "better_than_initializer": sum(a.appearance > b.appearance for a, b in pairs),
        "share_of_nouns": ratio_of_means(
            _values(words, APPEARANCE), _values(of[NOUN], APPEARANCE), seed
        ),
        "share_of_described": ratio_of_pairs(
            _values(words, APPEARANCE), _values(described, APPEARANCE), seed
        ),
        "share_of_drawn": {
            name: ratio_of_pairs(_values(words, name), _values(drawn, name), seed)
            for name in (APPEARANCE, ASKED)
        },
        "background_against_nouns": _background_against_nouns(words, of[NOUN], seed),
    }


def _background_against_nouns(
    words: Sequence[Score], nouns: Sequence[Score], seed: int
) -> Estimate:
    """How much oftener words show the background asked for than nouns of their tint.

    Within a tint: what sepia leaves of backgrounds, the judge cannot tell apart.
    """
    of_tint: dict[str, list[Score]] = {}
    for noun in nouns:
        of_tint.setdefault(noun.tint, []).append(noun)
    known = {tint: np.mean(_values(same, ASKED)) for tint, same in of_tint.items()}
    theirs = [float(known[word.tint]) for word in words]
    return mean_of_differences(_values(words, ASKED), theirs, seed)


def _beside(
    first: str, other: str, of: Sequence[Groups], seed: int
) -> dict[str, object]:
    """Points that a method adds to the first one's, each word beside the same word."""
    base, added = (
        [score for groups in of for score in groups[method]]
        for method in (first, other)
    )
    names = (APPEARANCE, *(name for name in BACKGROUNDS if name in base[0].accuracy))
    return {
        "beside": first,
        **{
            name: mean_of_differences(_values(added, name), _values(base, name), seed)
            for name in names
        },
    }


def _values(scores: Sequence[Score], name: str) -> list[float]:
    if name == APPEARANCE:
        return [score.appearance for score in scores]
    return [score.accuracy[name] for score in scores]
