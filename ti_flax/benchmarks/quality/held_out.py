"""The concepts of the quality benchmark, their pictures and their sentences."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ti_flax.benchmarks.quality import judge
from ti_flax.benchmarks.quality.keys import Split
from ti_flax.benchmarks.quality.methods import DEFAULT, Method
from ti_flax.quickstart.critters import concept as critter
from ti_flax.quickstart.critters import drawing, world
from ti_flax.quickstart.critters.drawing import Look, Scene, Style
from ti_flax.text.templates import prompt_templates

_PICTURES = 5  # of each concept
_JUDGED = 2**33  # more than any seed of training pictures
_TEMPLATE_STRIDE = 5  # shares no factor with the number of templates of either kind


class Concept(NamedTuple):
    """What to learn, and the word to start from."""

    target: Look | Style
    initializer: str
    # Concepts of one number have the same pictures and draw the same examples.
    number: int = 0
    method: Method = DEFAULT

    @property
    def learnable_property(self) -> str:
        return property_of(self.target)

    @property
    def background(self) -> str:
        """That of its pictures, where they have one: another from number to number."""
        return world.BACKGROUNDS[self.number % len(world.BACKGROUNDS)]


def property_of(target: Look | Style) -> str:
    return "object" if isinstance(target, Look) else "style"


def described(target: Look | Style) -> str:
    """All that a target is, in the words that the model was taught."""
    if isinstance(target, Look):
        return world.described_look(target)
    return world.described_style(target)


def concepts(num_objects: int, split: Split = "held_out") -> list[Concept]:
    """The first looks of a split, and every style of it.

    A third of the looks each starts from the word for any critter, from the word for
    its shape, and from a species that is another critter. The first style starts from
    the word for any style, each other one from a style that is another.
    """
    looks, styles = world.HELD_OUT_LOOKS, world.HELD_OUT_STYLES
    if split == "development":
        looks, styles = world.development_looks(), tuple(world.STYLES.values())
    species = iter(world.SPECIES_NOUNS)
    starts = cycle(
        (
            lambda look: world.OBJECT_WORD,
            lambda look: look.shape,
            lambda look: next(species),
        )
    )
    words = (world.STYLE_WORD, *world.STYLE_NOUNS)
    return [
        *(
            Concept(look, start(look))
            for look, start in zip(looks[:num_objects], starts, strict=False)
        ),
        # In development, a style's own noun is the word after the one it starts from.
        *(Concept(style, word) for style, word in zip(styles, words, strict=False)),
    ]


def learned(
    concepts: Sequence[Concept], methods: Iterable[Method], repeats: int
) -> list[Concept]:
    """Each concept by each method, so many times; styles, which are all over, unmasked.

    Method after method, and the concepts of each in their order, again and again.
    """
    numbered = [
        concept._replace(number=number)
        for number, concept in enumerate([*concepts] * repeats)
    ]
    return [
        concept._replace(method=method)
        for method in methods
        for concept in numbered
        if method.teaching != "masks" or concept.learnable_property == "object"
    ]


def training_scenes(
    concept: Concept, seed: int, one_background: bool = False
) -> list[Scene]:
    """A look, or several in a style: each on another background, or all on one."""
    backgrounds = world.BACKGROUNDS[:_PICTURES]
    if one_background:
        backgrounds = [concept.background] * _PICTURES
    return _scenes(concept.target, backgrounds, seed + concept.number)


def judged_scenes(target: Look | Style, count: int, seed: int) -> list[Scene]:
    """What `count` generated pictures of a target should show, each in another pose.

    No training picture has such a pose.
    """
    backgrounds = [background for _, background in contexts(property_of(target), count)]
    return _scenes(target, backgrounds, seed + _JUDGED)


def _scenes(target: Look | Style, backgrounds: Sequence[str], seed: int) -> list[Scene]:
    """A look, or several in a style, on each of the backgrounds."""
    if isinstance(target, Look):
        return critter.scenes(target, backgrounds, seed)
    rng = np.random.default_rng(seed)
    return [
        judge.random_scene(rng, styled=False)._replace(
            style=target, background=background
        )
        for background in backgrounds
    ]


def subject_mask(scene: Scene) -> UInt8[np.ndarray, "H W"]:
    """White where the subject hides the background, black elsewhere."""
    one, other = (
        drawing.draw(scene._replace(background=background))
        for background in ("white", "black")
    )
    return np.where((one == other).all(axis=2), np.uint8(255), np.uint8(0))


def training_prompts(concept: Concept, scenes: Sequence[Scene]) -> list[list[str]]:
    """Of each picture the sentences that it is learned with, `{}` for the word."""
    templates = [*prompt_templates(concept.learnable_property)]
    if concept.method.teaching != "captions":
        return [templates] * len(scenes)
    return [
        [_placed(template, scene.background) for template in templates]
        for scene in scenes
    ]


def contexts(learnable_property: str, count: int) -> list[tuple[str, str]]:
    """Sentences with `{}` for the word, and the background that each asks for."""
    backgrounds = (
        world.BACKGROUNDS[index % len(world.BACKGROUNDS)] for index in range(count)
    )
    return [
        (_placed(sentence, background), background)
        for sentence, background in zip(
            sentences(learnable_property, count), backgrounds, strict=True
        )
    ]


def sentences(learnable_property: str, count: int) -> list[str]:
    """Sentences with `{}` for the word that ask for no background."""
    templates = prompt_templates(learnable_property)
    return [
        templates[index * _TEMPLATE_STRIDE % len(templates)] for index in range(count)
    ]


def _placed(sentence: str, background: str) -> str:
    return f"{sentence} on a {background} background"
