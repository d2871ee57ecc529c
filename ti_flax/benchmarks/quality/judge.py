"""Reads off a picture of the world what it shows, attribute by attribute.

A small convolutional network, shipped beside this file. It was fitted by `fit_judge` to
drawn pictures alone, every combination of attributes alike, and has seen no generated
picture: it cannot know which looks the base model was taught.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, ArrayLike, Float, Int, UInt8

from ti_flax.models.torch_params import Params
from ti_flax.quickstart.critters import drawing, world
from ti_flax.quickstart.critters.drawing import Scene

FILE = Path(__file__).with_name("judge.safetensors")

# What the judge tells apart; a caption can say all of it.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "body": world.BODIES,
    "accent": world.ACCENTS,
    "pattern": world.PATTERNS,
    "top": world.TOPS,
    "background": world.BACKGROUNDS,
    "tint": drawing.TINTS,
    "texture": drawing.TEXTURES,
}
LOOK_ATTRIBUTES = ("shape", "body", "accent", "pattern", "top")
STYLE_ATTRIBUTES = ("tint", "texture")

# Kernel, stride and channels of each layer. The first takes 4 pixels at a stride: what
# tells looks apart is larger, and convolutions at full resolution are slow on a CPU.
_LAYERS = ((6, 4, 48), (3, 1, 48), (3, 2, 64), (3, 2, 96))
_AT_ONCE = 200  # pictures, to bound memory


class Judge(nn.Module):
    """Pictures in [-1, 1] to the logits of all attributes, one after another."""

    @nn.compact
    def __call__(self, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B logits"]:
        x = pictures
        for kernel, stride, channels in _LAYERS:
            x = nn.relu(nn.Conv(channels, (kernel, kernel), stride)(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(sum(map(len, ATTRIBUTES.values())))(x)


def split_logits(
    logits: Float[Array, "B logits"],
) -> dict[str, Float[Array, "B values"]]:
    """The logits of each attribute's values."""
    ends = np.cumsum([len(values) for values in ATTRIBUTES.values()])
    parts = jnp.split(logits, ends[:-1], axis=1)
    return dict(zip(ATTRIBUTES, parts, strict=True))


def labels(scene: Scene) -> list[int]:
    """The true value of each attribute, as its index."""
    values = (*scene.look, scene.background, *scene.style)
    return [
        names.index(value)
        for names, value in zip(ATTRIBUTES.values(), values, strict=True)
    ]


def random_scene(rng: np.random.Generator, styled: bool) -> Scene:
    """Any look on any background, in the plain style or in any of the others.

    Values are independent of each other, but for the accent, which must differ from
    the body.
    """
    look = drawing.Look(*(str(rng.choice(ATTRIBUTES[n])) for n in LOOK_ATTRIBUTES))
    if look.body == look.accent:
        return random_scene(rng, styled)
    style = world.NO_STYLE
    while styled and style == world.NO_STYLE:
        style = drawing.Style(*(str(rng.choice(ATTRIBUTES[n])) for n in style._fields))
    background = str(rng.choice(world.BACKGROUNDS))
    return Scene(look, background, style, world.random_pose(rng))


def save_params(params: Params, path: Path = FILE) -> None:
    """Writes the judge in float16."""
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    tensors = {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()}
    safetensors.numpy.save_file(tensors, path)


@functools.cache
def load_params(path: Path = FILE) -> Params:
    """The params of the shipped judge, float32."""
    flat = safetensors.numpy.load_file(path)
    return flax.traverse_util.unflatten_dict(
        {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()}, sep="."
    )


def read_attributes(
    pictures: UInt8[np.ndarray, "N H W 3"],
) -> dict[str, Int[np.ndarray, "N"]]:
    """The value of each attribute that each picture most probably shows."""
    params = load_params()
    parts = [
        _most_probable(params, pictures[start : start + _AT_ONCE])
        for start in range(0, len(pictures), _AT_ONCE)
    ]
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in ATTRIBUTES
    }


def own_accuracy(num_pictures: int, seed: int) -> dict[str, float]:
    """Share of drawn pictures that the judge reads right, by attribute.

    Looks and backgrounds are read off pictures in the plain style, tints and textures
    off pictures in all others, as `quality` does.
    """
    rng = np.random.default_rng(seed)
    right: dict[str, float] = {}
    for styled, names in (
        (False, (*LOOK_ATTRIBUTES, "background")),
        (True, STYLE_ATTRIBUTES),
    ):
        scenes = [random_scene(rng, styled) for _ in range(num_pictures)]
        found = read_attributes(draw_all(scenes))
        true = dict(zip(ATTRIBUTES, np.transpose([*map(labels, scenes)]), strict=True))
        right |= {name: float((found[name] == true[name]).mean()) for name in names}
    return right


def draw_all(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "N H W 3"]:
    return np.stack([drawing.draw(scene) for scene in scenes])


@jax.jit
def _most_probable(
    params: Params, pictures: UInt8[Array, "B H W 3"]
) -> dict[str, Int[Array, "B"]]:
    logits = Judge().apply({"params": params}, scaled(pictures))
    return {name: part.argmax(axis=1) for name, part in split_logits(logits).items()}


def scaled(pictures: UInt8[ArrayLike, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Bytes to [-1, 1]."""
    return jnp.asarray(pictures, jnp.float32) / 127.5 - 1
