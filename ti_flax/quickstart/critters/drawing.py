"""Draws one 64x64 critter from signed distances, antialiased without supersampling.

Every part is a signed distance field in pixels (negative inside); its coverage of a
pixel is `clip(1/2 - distance)`, and parts are laid over one another from back to front.
The heart's distance follows Inigo Quilez, "2D distance functions" (iquilezles.org).
Coordinates are the critter's own: x to the right, y down, one unit is its half height.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

SIDE = 64  # pixels

Plane = Float[np.ndarray, "H W"]
Picture = Float[np.ndarray, "H W 3"]

# Far apart in hue or lightness, because a small VAE blurs neighbours (teal and blue).
BODY_COLOURS = {
    "red": (214, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (252, 216, 60),
    "green": (60, 165, 70),
    "blue": (45, 95, 225),
    "purple": (140, 60, 190),
    "pink": (255, 140, 190),
    "brown": (120, 72, 38),
}
ACCENT_COLOURS = {
    "white": (250, 250, 250),
    "black": (38, 34, 44),
    "red": (214, 40, 40),
    "yellow": (252, 216, 60),
    "green": (60, 165, 70),
    "blue": (45, 95, 225),
}
BACKGROUND_COLOURS = {
    "white": (246, 246, 244),
    "blue": (165, 208, 250),
    "green": (176, 228, 172),
    "pink": (252, 200, 214),
    "yellow": (253, 240, 168),
    "black": (62, 60, 78),
}
OUTLINE = (46, 34, 48)
OUTLINE_WIDTH = 1.3  # pixels

# Where ears and horns sit (distance from the middle, height), and where a hat sits.
ANCHORS = {
    "round": (0.58, -0.72, -0.84),
    "square": (0.56, -0.78, -0.72),
    "triangle": (0.42, -0.46, -0.66),
    "star": (0.54, -0.56, -0.72),
    "heart": (0.60, -0.84, -0.50),
    "tall": (0.38, -0.84, -0.90),
}
SHAPES = tuple(ANCHORS)
PATTERNS = ("plain", "striped", "dotted")
TOPS = ("none", "ears", "horns", "hat")
TINTS = ("natural", "sepia", "dusk")
TEXTURES = ("smooth", "hatched", "pixelated", "vignetted")


class Look(NamedTuple):
    """What a critter is, wherever it stands; the thing a noun can name."""

    shape: str
    body: str
    accent: str
    pattern: str
    top: str


class Style(NamedTuple):
    """How a picture is made, whatever it shows."""

    tint: str
    texture: str


class Pose(NamedTuple):
    """What differs between two pictures of one critter; no caption mentions it."""

    x: float  # middle of the critter, pixels from the left
    y: float  # middle of the critter, pixels from the top
    size: float  # half height of the body, pixels
    tilt: float  # radians, clockwise
    gaze: tuple[float, float]  # offset of the pupils, in eye radii
    light: float  # brightness, a factor
    phase: float  # offset of the pattern, in periods


class Scene(NamedTuple):
    look: Look
    background: str
    style: Style
    pose: Pose


_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + np.float32(0.5)


def draw(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a scene; the same scene gives the same bytes."""
    look, pose = scene.look, scene.pose
    picture = _background(BACKGROUND_COLOURS[scene.background], pose)
    cos, sin = np.cos(pose.tilt), np.sin(pose.tilt)
    dx, dy = _COLUMNS - pose.x, _ROWS - pose.y
    x, y = (cos * dx + sin * dy) / pose.size, (cos * dy - sin * dx) / pose.size

    accent = ACCENT_COLOURS[look.accent]
    body = _body_distance(look.shape, x, y) * pose.size
    _draw_feet(picture, x, y, pose.size, accent)
    if look.top in ("ears", "horns"):
        _draw_ears(picture, x, y, pose.size, look, accent)
    _paint(picture, body - OUTLINE_WIDTH, OUTLINE)
    _paint(picture, body, BODY_COLOURS[look.body])
    if look.pattern != "plain":
        marks = _pattern_distance(look.pattern, x, y, pose.phase) * pose.size
        _paint(picture, np.maximum(marks, body), accent)
    _draw_face(picture, x, y, pose)
    if look.top == "hat":
        _draw_hat(picture, x, y, pose.size, ANCHORS[look.shape][2], accent)
    picture = _in_style(picture * np.float32(pose.light), scene.style)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _paint(picture: Picture, distance: Plane, colour: tuple[int, int, int]) -> None:
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    picture += coverage * (np.asarray(colour, np.float32) - picture)


def _background(colour: tuple[int, int, int], pose: Pose) -> Picture:
    fade = 1.03 - 0.06 * _ROWS / SIDE
    across = (_COLUMNS - pose.x) / (0.85 * pose.size)
    down = (_ROWS - pose.y - 1.12 * pose.size) / (0.2 * pose.size)
    shadow = 1 - 0.22 * np.clip(1.5 - np.hypot(across, down), 0, 1)
    return (fade * shadow)[..., None] * np.asarray(colour, np.float32)


def _circle(x: Plane, y: Plane, cx: float, cy: float, radius: float) -> Plane:
    return np.hypot(x - cx, y - cy) - radius


def _box(x: Plane, y: Plane, width: float, height: float, corner: float) -> Plane:
    """Half width and half height include the rounded corner."""
    dx, dy = np.abs(x) - (width - corner), np.abs(y) - (height - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def _polygon(x: Plane, y: Plane, corners: list[tuple[float, float]]) -> Plane:
    """Distance to a polygon whose corners run clockwise on the screen (y down)."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        square = (px - along * ex) ** 2 + (py - along * ey) ** 2
        np.minimum(nearest, square, out=nearest)
        if ey:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (px < py * np.float32(ex / ey))
    return np.where(inside, -1, 1) * np.sqrt(nearest)


_STAR = [
    (
        radius * np.sin(np.pi * corner / 5),
        0.06 - radius * np.cos(np.pi * corner / 5),
    )
    for corner in range(10)
    for radius in [1.06 if corner % 2 == 0 else 0.58]
]


def _body_distance(shape: str, x: Plane, y: Plane) -> Plane:
    match shape:
        case "round":
            return _circle(x, y, 0, 0, 0.92)
        case "square":
            return _box(x, y, 0.84, 0.84, 0.16)
        case "triangle":
            return _polygon(x, y, [(0, -0.88), (0.92, 0.7), (-0.92, 0.7)]) - 0.14
        case "star":
            return _polygon(x, y, _STAR) - 0.12
        case "heart":
            return _heart(x, y)
        case "tall":
            return _box(x, y, 0.56, 1.0, 0.54)
    raise ValueError(f"no such shape: {shape}")


def _heart(x: Plane, y: Plane) -> Plane:
    scale = 1.8
    x, y = np.abs(x) / scale, (0.88 - y) / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - np.float32(np.sqrt(2) / 4)
    fold = 0.5 * np.maximum(x + y, 0)
    tip = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - fold) ** 2 + (y - fold) ** 2))
    return scale * np.where(x + y > 1, lobe, np.where(x > y, tip, -tip)) - 0.04


def _pattern_distance(pattern: str, x: Plane, y: Plane, phase: float) -> Plane:
    if pattern == "striped":
        period = 0.56
        return np.abs((y / period + phase) % 1 - 0.5) * period - 0.13
    period = 0.6
    row = np.floor(y / period + phase)
    across = (x / period + 0.5 * (row % 2)) % 1 - 0.5
    down = (y / period + phase) % 1 - 0.5
    return np.hypot(across, down) * period - 0.17


def _draw_feet(
    picture: Picture, x: Plane, y: Plane, size: float, accent: tuple[int, int, int]
) -> None:
    side = np.abs(x)
    legs = _box(side - 0.36, y - 0.7, 0.07, 0.4, 0.05) * size
    feet = _box(side - 0.42, y - 1.06, 0.27, 0.17, 0.17) * size
    _paint(picture, np.minimum(legs, feet - OUTLINE_WIDTH), OUTLINE)
    _paint(picture, feet, accent)


def _draw_ears(
    picture: Picture,
    x: Plane,
    y: Plane,
    size: float,
    look: Look,
    accent: tuple[int, int, int],
) -> None:
    """Round ears have the body's colour and an accent inside; horns are all accent."""
    spread, height, _ = ANCHORS[look.shape]
    side = np.abs(x)
    if look.top == "ears":
        ear = _circle(side, y, spread + 0.1, height - 0.1, 0.34) * size
        _paint(picture, ear - OUTLINE_WIDTH, OUTLINE)
        _paint(picture, ear, BODY_COLOURS[look.body])
        _paint(picture, ear + 0.16 * size, accent)
        return
    tip = (spread + 0.28, height - 0.62)
    foot = [(spread + 0.26, height + 0.12), (spread - 0.26, height + 0.12)]
    horn = _polygon(side, y, [tip, *foot]) * size - 0.6
    _paint(picture, horn - OUTLINE_WIDTH, OUTLINE)
    _paint(picture, horn, accent)


def _draw_hat(
    picture: Picture,
    x: Plane,
    y: Plane,
    size: float,
    height: float,
    accent: tuple[int, int, int],
) -> None:
    brim = _box(x, y - height, 0.58, 0.11, 0.1)
    crown = _box(x, y - height + 0.34, 0.34, 0.36, 0.06)
    hat = np.minimum(brim, crown) * size
    _paint(picture, hat - OUTLINE_WIDTH, OUTLINE)
    _paint(picture, hat, accent)


def _draw_face(picture: Picture, x: Plane, y: Plane, pose: Pose) -> None:
    side, size = np.abs(x), pose.size
    eyes = _circle(side, y, 0.26, -0.06, 0.21) * size
    _paint(picture, eyes - 0.7, OUTLINE)
    _paint(picture, eyes, (255, 255, 255))
    gaze_x, gaze_y = 0.08 * pose.gaze[0], 0.08 * pose.gaze[1] - 0.06
    left = _circle(x, y, gaze_x - 0.26, gaze_y, 0.115)
    right = _circle(x, y, gaze_x + 0.26, gaze_y, 0.115)
    _paint(picture, np.minimum(left, right) * size, (20, 16, 24))
    smile = np.abs(np.hypot(x, y - 0.14) - 0.21) - 0.045
    _paint(picture, np.maximum(smile, 0.24 - y) * size, OUTLINE)


def _in_style(picture: Picture, style: Style) -> Picture:
    match style.texture:
        case "pixelated":
            blocks = picture.reshape(SIDE // 4, 4, SIDE // 4, 4, 3).mean((1, 3))
            picture = blocks.repeat(4, 0).repeat(4, 1)
        case "hatched":
            lines = np.abs((_ROWS + _COLUMNS) % 8 - 4) < 1.5
            picture = picture * np.where(lines, 0.62, 1.05)[..., None]
        case "vignetted":
            far = np.hypot(_ROWS - SIDE / 2, _COLUMNS - SIDE / 2) - 0.47 * SIDE
            picture = picture + np.clip(far / 3, 0, 1)[..., None] * (20 - picture)
    match style.tint:
        case "sepia":
            grey = picture @ np.array([0.3, 0.55, 0.15], np.float32)
            picture = grey[..., None] * np.array([1.04, 0.86, 0.62], np.float32)
        case "dusk":
            picture = picture * np.array([0.5, 0.45, 0.85], np.float32)
            picture = picture + np.array([20, 10, 36], np.float32)
    return picture
