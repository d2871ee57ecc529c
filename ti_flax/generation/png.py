"""Generated pictures as PNG files that say how they were made."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from ti_flax import __version__
from ti_flax.runtime import atomic

# AUTOMATIC1111's names of the samplers.
_SAMPLER_NAMES = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "euler": "Euler",
    "lcm": "LCM",
    "pndm": "PLMS",
}


class Making(NamedTuple):
    """How a picture was made; `words` are the learned words and their vectors."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    scheduler: str
    guidance_scale: float
    width: int
    height: int
    model: str
    words: dict[str, int]

    def parameters(self) -> str:
        """The text that AUTOMATIC1111 writes into its pictures and reads from them."""
        settings = {
            "Steps": self.steps,
            "Sampler": _SAMPLER_NAMES[self.scheduler],
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": _quoted(Path(self.model).name),
            "Version": f"ti_flax {__version__}",
        }
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
        return "\n".join(lines)


def _quoted(text: str) -> str:
    special = any(mark in text for mark in ",:\n")
    return json.dumps(text, ensure_ascii=False) if special else text


def to_image(pixels: UInt8[np.ndarray, "H W 3"], making: Making) -> Image.Image:
    """A picture whose `info` has `parameters`, and `ti_flax`, the same as JSON."""
    image = Image.fromarray(pixels)
    content = {"version": __version__, **making._asdict()}
    image.info["parameters"] = making.parameters()
    image.info["ti_flax"] = json.dumps(content, ensure_ascii=False)
    return image


def save(image: Image.Image, path: Path) -> None:
    """Writes a PNG with the texts of `image.info` as tEXt (iTXt beyond Latin-1)."""
    texts = PngImagePlugin.PngInfo()
    for key, text in image.info.items():
        texts.add_text(key, text)
    with atomic.atomic_path(path) as temporary:
        image.save(temporary, "PNG", pnginfo=texts)


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """The pictures side by side, row by row, with the texts of the first of them."""
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * width, row * height))
    sheet.info.update(images[0].info)
    return sheet


def next_number(folder: Path) -> int:
    """The number after the highest of the pictures (`00012.png`) in a folder."""
    numbers = [int(p.stem) for p in folder.glob("*.png") if p.stem.isdecimal()]
    return max(numbers, default=-1) + 1
