"""The quickstart's pictures: a critter that the base model has never seen or named.

    python -m ti_flax.quickstart.concept

draws them again, the same bytes of pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.quickstart.critters import drawing, world

FOLDER = Path(__file__).parent.parent / "pictures"
LOOK = world.HELD_OUT_LOOKS[6]  # a striped heart, yellow and black
# All different, so that the word need not mean one of them; black is left to be new.
BACKGROUNDS = ("white", "green", "pink", "yellow", "blue")
SEED = 8


def scenes(
    look: drawing.Look, backgrounds: Sequence[str], seed: int
) -> list[drawing.Scene]:
    """A look on each of the backgrounds, in poses of its own."""
    rng = np.random.default_rng(seed)
    return [
        drawing.Scene(look, background, world.NO_STYLE, world.random_pose(rng))
        for background in backgrounds
    ]


def draw_pictures() -> UInt8[np.ndarray, "N H W 3"]:
    """The quickstart's pictures."""
    return np.stack([*map(drawing.draw, scenes(LOOK, BACKGROUNDS, SEED))])


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for number, picture in enumerate(draw_pictures()):
        Image.fromarray(picture).save(FOLDER / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main()
