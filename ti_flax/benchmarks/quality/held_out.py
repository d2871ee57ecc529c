"""The concepts of the quality benchmark: looks and styles that the model never saw."""

from itertools import cycle
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ti_flax.benchmarks.quality import judge
from ti_flax.quickstart.critters import concept, drawing, world
from ti_flax.quickstart.critters.drawing import Look, Style
from ti_flax.text.templates import prompt_templates

_PICTURES = 5  # of each concept
_TEMPLATE_STRIDE = 5  # shares no factor with the number of templates of either kind


class Concept(NamedTuple):
    """What to learn, and the word to start from."""

    target: Look | Style
    initializer: str

    @property
    def learnable_property(self) -> str:
        return property_of(self.target)


def property_of(target: Look | Style) -> str:
    return "object" if isinstance(target, Look) else "style"


def concepts(num_objects: int) -> list[Concept]:
    """The first held-out looks, and every held-out style.

    A third of the looks each starts from the word for any critter, from the word for
    its shape, and from a species that is another critter. The styles start from the
    word for any style, and from two styles that are others.
    """
    looks = world.HELD_OUT_LOOKS[:num_objects]
    species = iter(world.SPECIES_NOUNS)
    starts = cycle(
        (
            lambda look: world.OBJECT_WORD,
            lambda look: look.shape,
            lambda look: next(species),
        )
    )
    styles = (world.STYLE_WORD, *world.STYLE_NOUNS)
    return [
        *(
            Concept(look, start(look))
            for look, start in zip(looks, starts, strict=False)
        ),
        *map(Concept, world.HELD_OUT_STYLES, styles),
    ]


def training_pictures(target: Look | Style, seed: int) -> UInt8[np.ndarray, "N H W 3"]:
    """Pictures of a look, or in a style of several looks, all on other backgrounds."""
    backgrounds = world.BACKGROUNDS[:_PICTURES]
    if isinstance(target, Look):
        return concept.draw_pictures(target, backgrounds, seed)
    rng = np.random.default_rng(seed)
    scenes = [
        judge.random_scene(rng, styled=False)._replace(
            style=target, background=background
        )
        for background in backgrounds
    ]
    return np.stack([drawing.draw(scene) for scene in scenes])


def contexts(learnable_property: str, count: int) -> list[tuple[str, str]]:
    """Sentences with `{}` for the word, and the background that each asks for."""
    templates = prompt_templates(learnable_property)
    asked = []
    for index in range(count):
        background = world.BACKGROUNDS[index % len(world.BACKGROUNDS)]
        template = templates[index * _TEMPLATE_STRIDE % len(templates)]
        asked.append((f"{template} on a {background} background", background))
    return asked
