"""Pictures of the report, small enough to lie inside its page."""

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.reports.plots import Line
from ti_flax.runtime.pages import data_uri

# Longest sides, in pixels: twice those of the page's layout.
SIDE, _LARGE = 224, 512
# Validations that a strip shows; more are thinned out evenly.
_MAX_COLUMNS = 16


def of_pictures(pictures: Collection[UInt8[np.ndarray, "_ _ 3"]]) -> list[str]:
    """A data URI of each."""
    return [data_uri(Image.fromarray(picture), SIDE) for picture in pictures]


def of_prompts(folder: Path, validations: Sequence[Line]) -> list[Line]:
    """For each prompt: the last previews, the control, and those over the steps.

    A run that was resumed may have other prompts than before, and files may be gone.
    """
    # By prompt, of each step.
    seen: dict[str, dict[int, Line]] = {}
    controls: dict[str, Line] = {}
    for validation in validations:
        for number, shown in enumerate(validation["previews"]):
            if all((folder / file).exists() for file in shown["files"]):
                seen.setdefault(shown["prompt"], {})[validation["step"]] = shown
            if validation["control"]:
                controls[shown["prompt"]] = validation["control"][number]
    return [
        {
            "prompt": prompt,
            "step": max(by_step),
            "last": _thumbnails(folder, by_step[max(by_step)], _LARGE),
            "control": _column(folder, controls.get(prompt)),
            "strip": [
                {"step": number, **_column(folder, by_step[number])}
                for number in _evenly(sorted(by_step), _MAX_COLUMNS)
            ],
        }
        for prompt, by_step in seen.items()
    ]


def _evenly(values: Sequence[int], most: int) -> list[int]:
    """The first, the last and others between them, `most` in all."""
    kept = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[index] for index in kept]


def _column(folder: Path, shown: Line | None) -> Line | None:
    if shown is None or not all((folder / file).exists() for file in shown["files"]):
        return None
    return {
        "prompt": shown["prompt"],
        "pictures": _thumbnails(folder, shown, SIDE),
    }


def _thumbnails(folder: Path, shown: Line, side: int) -> list[str]:
    paths = [folder / file for file in shown["files"]]
    return [_file_uri(path, path.stat().st_mtime_ns, side) for path in paths]


@functools.lru_cache(maxsize=4096)
def _file_uri(path: Path, _changed: int, side: int) -> str:
    """Cached: every page has most of the pictures of the page before."""
    with Image.open(path) as image:
        return data_uri(image, side)
