"""A second judge, independent of the first: colours and patterns by rules, no network.

Rules know how the world is drawn; their limits lie between drawings of either kind.
They read what is plain to see: the background in strips left and right of the critter,
its body's colour in the middle, its accent's in the feet. Shapes, patterns and tops are
left to the network.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from ti_flax.quickstart.critters import drawing

# Of what is read, that of looks is read in the plain style alone.
ATTRIBUTES = ("body", "accent", "background", "tint", "texture")

_ROWS, _COLUMNS = np.mgrid[: drawing.SIDE, : drawing.SIDE]
_BLOCK = 4
# Outside of every pose's critter and of the vignette.
_SIDES = (abs(_ROWS - 32) < 16) & ((_COLUMNS // 5 == 1) | (_COLUMNS // 5 == 11))
_CORNERS = (abs(_ROWS - 31.5) > 26) & (abs(_COLUMNS - 31.5) > 26)
_MIDDLE = np.hypot(_ROWS - 36, _COLUMNS - 31.5) < 10
_FEET = (_ROWS >= 53) & (_ROWS < 59) & (abs(_COLUMNS - 31.5) < 16)
_LINES = abs((_ROWS + _COLUMNS + 1) % 8 - 4) < 1.5

_GREY = np.array([0.3, 0.55, 0.15], np.float32)
_SEPIA = np.array([1.04, 0.86, 0.62], np.float32)
_DUSK = np.array([[0.5, 0.45, 0.85], [20, 10, 36]], np.float32)

# Between what drawings of either kind have.
_OFF_SEPIA = 0.05  # share of colour that is not sepia's: up to 0.03, from 0.08 on
_BRIGHTEST_DUSK = 146  # of green, in one pixel of 100: up to 132, from 160 on
_IN_BLOCKS = 0.06  # share of the variance: 0, from 0.13 on
_DARK_CORNERS = 0.75  # as bright as the sides: up to 0.55, from 0.98 on
_DARK_LINES = 0.85  # as bright as between them: up to 0.73, from 0.99 on
_NEAR = 45  # a pixel's distance to a colour that it may be
_OFF_BACKGROUND = 25  # a pixel's distance to the background that it is not

Pixels = Float32[np.ndarray, "N H W 3"]


def read_attributes(
    pictures: UInt8[np.ndarray, "N H W 3"],
) -> dict[str, Int[np.ndarray, "N"]]:
    """The value of each of `ATTRIBUTES` in each picture, as its index."""
    pixels = pictures.astype(np.float32)
    sides = np.median(pixels[:, _SIDES], axis=1)
    tint = _tints(pixels)
    everywhere = np.ones((len(pixels), int(_MIDDLE.sum())), bool)
    off = np.linalg.norm(pixels[:, _FEET] - sides[:, None], axis=-1) > _OFF_BACKGROUND
    bodies, accents = drawing.BODY_COLOURS.values(), drawing.ACCENT_COLOURS.values()
    return {
        "body": _most_frequent(pixels[:, _MIDDLE], everywhere, bodies),
        "accent": _most_frequent(pixels[:, _FEET], off, accents),
        "background": _backgrounds(sides, tint),
        "tint": tint,
        "texture": _textures(pixels),
    }


def _tints(pixels: Pixels) -> Int[np.ndarray, "N"]:
    sepia = pixels.mean(axis=-1, keepdims=True) * _SEPIA / _SEPIA.mean()
    off = abs(pixels - sepia).mean(axis=(1, 2, 3)) / pixels.mean(axis=(1, 2, 3))
    green = np.percentile(pixels[..., 1], 99, axis=(1, 2))
    return np.select(
        [off < _OFF_SEPIA, green < _BRIGHTEST_DUSK],
        [drawing.TINTS.index("sepia"), drawing.TINTS.index("dusk")],
        drawing.TINTS.index("natural"),
    )


def _textures(pixels: Pixels) -> Int[np.ndarray, "N"]:
    light = pixels @ _GREY
    count = drawing.SIDE // _BLOCK
    blocks = light.reshape(-1, count, _BLOCK, count, _BLOCK)
    inside = blocks.var(axis=(2, 4)).mean(axis=(1, 2)) / light.var(axis=(1, 2))

    def ratio(one: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]):
        above, below = (np.median(light[:, at], axis=1) for at in (one, other))
        return above / np.maximum(below, 1)

    return np.select(
        [
            inside < _IN_BLOCKS,
            ratio(_CORNERS, _SIDES) < _DARK_CORNERS,
            ratio(_SIDES & _LINES, _SIDES & ~_LINES) < _DARK_LINES,
        ],
        [drawing.TEXTURES.index(n) for n in ("pixelated", "vignetted", "hatched")],
        drawing.TEXTURES.index("smooth"),
    )


def _backgrounds(
    sides: Float32[np.ndarray, "N 3"], tint: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "N"]:
    """The nearest of the backgrounds as they look in each picture's tint."""
    plain = np.array([*drawing.BACKGROUND_COLOURS.values()], np.float32)
    factor, offset = _DUSK
    looks = {
        "natural": plain,
        "sepia": (plain @ _GREY)[:, None] * _SEPIA,
        "dusk": plain * factor + offset,
    }
    seen = np.stack([looks[name] for name in drawing.TINTS])[tint]
    return np.linalg.norm(sides[:, None] - seen, axis=-1).argmin(axis=1)


def _most_frequent(
    pixels: Float32[np.ndarray, "N P 3"],
    counted: Bool[np.ndarray, "N P"],
    colours: Iterable[tuple[int, int, int]],
) -> Int[np.ndarray, "N"]:
    """The colour that most of the counted pixels are near to and nearest to."""
    known = np.array([*colours], np.float32)
    far = np.linalg.norm(pixels[:, :, None] - known, axis=-1)
    far = np.where(counted[..., None], far, np.inf)
    near = (far == far.min(axis=-1, keepdims=True)) & (far < _NEAR)
    return near.sum(axis=1).argmax(axis=1)
