"""The procedural world of the quickstart model: critters, their captions, their nouns.

A picture shows one critter (a `Look`) on a background, in a style. Captions say what is
seen in words or name it, so that the model learns that one noun can carry a whole
appearance. Every look and style that is shown has a name (`names`); of these names 40
species nouns and 8 style nouns are words of the vocabulary. The held-out looks and
styles, the concepts for Textual Inversion to learn, are never shown nor named.
Everything is a pure function of its seed.
"""

import functools
from collections.abc import Sequence
from itertools import product
from typing import TypeVar

import numpy as np

from ti_flax.quickstart.critters import drawing
from ti_flax.quickstart.critters.drawing import Look, Pose, Scene, Style
from ti_flax.text import templates

SHAPES = drawing.SHAPES
BODIES = tuple(drawing.BODY_COLOURS)
ACCENTS = tuple(drawing.ACCENT_COLOURS)
PATTERNS = drawing.PATTERNS
TOPS = drawing.TOPS
BACKGROUNDS = tuple(drawing.BACKGROUND_COLOURS)
NO_STYLE = Style("natural", "smooth")

# The words an untrained concept starts from: they name any critter, any style.
OBJECT_WORD = "critter"
STYLE_WORD = "art"
OBJECT_TEMPLATES = templates.OBJECT_TEMPLATES
STYLE_TEMPLATES = templates.STYLE_TEMPLATES

# fmt: off
SPECIES_NOUNS = (
    "blim", "bonzu", "chirpo", "dabble", "drovi", "elfin", "fimbo", "flonk", "fuzzle",
    "gimlo", "glorp", "grunzy", "hobnik", "huffi", "jixle", "jumbi", "klaff", "kwibo",
    "lumo", "mardle", "mipsy", "mookle", "nabu", "nerfle", "obbo", "okapu", "plink",
    "pozzu", "quorl", "rimbo", "skree", "snuffo", "tarku", "twizz", "umbli", "vorni",
    "wompa", "xando", "yibbit", "zorble",
)
STYLE_NOUNS = (
    "aurelo", "brisque", "cavo", "dremo", "esmira", "fauvel", "girano", "hexo",
)
# fmt: on
HELD_OUT_STYLES = (
    Style("sepia", "hatched"),
    Style("dusk", "pixelated"),
    Style("dusk", "vignetted"),
)

_HELD_OUT_LOOKS = 24
_STYLED = 0.15  # share of pictures that are not in the plain style
_EMPTY = 0.1  # share of empty captions, for classifier-free guidance
_SAID = 0.85  # chance that a describing caption says an attribute
_SAID_BACKGROUND = 0.7


T = TypeVar("T")


def _all_looks() -> list[Look]:
    everything = product(SHAPES, BODIES, ACCENTS, PATTERNS, TOPS)
    return [look for look in map(Look._make, everything) if look.body != look.accent]


def _spread_looks(count: int, seed: int, avoided: set[tuple]) -> list[Look]:
    """Looks in which every value of every attribute is about equally frequent."""
    rng = np.random.default_rng(seed)
    looks = [look for look in _all_looks() if _kind(look) not in avoided]
    looks = [looks[i] for i in rng.permutation(len(looks))]
    kinds = np.array([" ".join(_kind(look)) for look in looks])
    free = np.ones(len(looks), bool)
    # How often a look's values were chosen, each times how many a part has.
    crowding = np.zeros(len(looks))
    parts = map(np.array, zip(*looks, strict=True))
    values = [(part, len(set(part))) for part in parts]
    chosen: list[Look] = []
    while len(chosen) < count:
        best = int(np.argmin(np.where(free, crowding, np.inf)))
        chosen.append(looks[best])
        free &= kinds != kinds[best]
        for part, number in values:
            crowding += number * (part == part[best])
    return chosen


def _kind(look: Look) -> tuple[str, str, str, str]:
    """A look without its accent colour: what makes two critters clearly different."""
    return look.shape, look.body, look.pattern, look.top


HELD_OUT_LOOKS = tuple(_spread_looks(_HELD_OUT_LOOKS, seed=3, avoided=set()))
_HELD_OUT_KINDS = {_kind(look) for look in HELD_OUT_LOOKS}
SPECIES = dict(
    zip(
        SPECIES_NOUNS,
        _spread_looks(len(SPECIES_NOUNS), seed=4, avoided=_HELD_OUT_KINDS),
        strict=True,
    )
)
# Every look that may be shown: none is a held-out one, even in another accent colour.
SHOWN_LOOKS = tuple(look for look in _all_looks() if _kind(look) not in _HELD_OUT_KINDS)
_SHOWN_STYLES = [
    style
    for style in map(Style._make, product(drawing.TINTS, drawing.TEXTURES))
    if style != NO_STYLE and style not in HELD_OUT_STYLES
]
STYLES = dict(zip(STYLE_NOUNS, _SHOWN_STYLES, strict=True))


@functools.cache
def development_looks() -> tuple[Look, ...]:
    """As many looks as are held out, to choose methods by: shown, but without a noun.

    Of the kind of none that is held out or a species.
    """
    species = {_kind(look) for look in SPECIES.values()}
    return tuple(
        _spread_looks(_HELD_OUT_LOOKS, seed=5, avoided=_HELD_OUT_KINDS | species)
    )


def training_scene(seed: int, index: int) -> Scene:
    """Picture `index` of the endless training set `seed`."""
    rng = np.random.default_rng([seed, index])
    styled = rng.random() < _STYLED
    return Scene(
        _choice(rng, SHOWN_LOOKS),
        _choice(rng, BACKGROUNDS),
        _choice(rng, _SHOWN_STYLES) if styled else NO_STYLE,
        random_pose(rng),
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many captions of a picture; sometimes the empty one.

    A noun in it, whichever it is, stands for the name of what the picture shows.
    """
    if rng.random() < _EMPTY:
        return ""
    noun = rng.random() < 0.5
    subject = _choice(rng, SPECIES_NOUNS) if noun else described_look(scene.look, rng)
    if scene.style == NO_STYLE:
        return _photo(rng, subject, scene.background)
    noun = rng.random() < 0.5
    manner = _choice(rng, STYLE_NOUNS) if noun else described_style(scene.style)
    return _artwork(rng, subject, scene.background, manner)


def random_pose(rng: np.random.Generator) -> Pose:
    """Place, size, tilt, gaze, light and pattern offset, as no caption says them."""
    return Pose(
        x=rng.uniform(28, 36),
        y=rng.uniform(34.5, 38),
        size=rng.uniform(16.5, 20),
        tilt=rng.uniform(-0.15, 0.15),
        gaze=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
        light=rng.uniform(0.96, 1.03),
        phase=rng.uniform(0, 1),
    )


def described_look(look: Look, rng: np.random.Generator | None = None) -> str:
    """Says, as in "striped red round critter with blue feet and horns", most of a look.

    Without `rng` all of it. The accent colour is said of the feet, which every critter
    has.
    """

    def said() -> bool:
        return rng is None or rng.random() < _SAID

    words = [word for word in (look.pattern, look.body, look.shape) if said()]
    extras = []
    if said():
        extras.append(f"{look.accent} feet")
    if look.top != "none" and said():
        extras.append("a hat" if look.top == "hat" else look.top)
    parts = " ".join([*words, OBJECT_WORD])
    return f"{parts} with {' and '.join(extras)}" if extras else parts


def described_style(style: Style) -> str:
    """Says a style, as in "hatched sepia art"; what is plain goes unsaid."""
    plain = set(NO_STYLE)
    words = [word for word in (style.texture, style.tint) if word not in plain]
    return " ".join([*words, STYLE_WORD])


def _photo(rng: np.random.Generator, subject: str, background: str) -> str:
    return _placed(rng, _choice(rng, OBJECT_TEMPLATES).format(subject), background)


def _artwork(
    rng: np.random.Generator, subject: str, background: str, manner: str
) -> str:
    """Half the time as a style is taught (whatever is shown), half with its subject."""
    if rng.random() < 0.5:
        return _placed(rng, _choice(rng, STYLE_TEMPLATES).format(manner), background)
    return f"{_photo(rng, subject, background)} in the style of {manner}"


def _placed(rng: np.random.Generator, text: str, background: str) -> str:
    said = rng.random() < _SAID_BACKGROUND
    return f"{text} on a {background} background" if said else text


def _choice(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]
