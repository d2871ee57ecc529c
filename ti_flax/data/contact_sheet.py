"""A page with what a model will see of a folder: pictures, masks, captions."""

import base64
import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.data import captions, masks
from ti_flax.data.folder import Pictures
from ti_flax.runtime import atomic, errors

# Twice that of the page's layout, px.
_SIDE = 448
_JPEG_QUALITY = 85
_PLACE = re.compile(r"\[name\]|\{\}")


class _Entry(NamedTuple):
    """What the page says of one picture."""

    name: str
    picture: str
    masked: str | None
    width: int
    height: int
    share: float
    # Of each caption the texts around the places of the new word.
    captions: list[list[str]]
    notes: list[str]


def write(
    path: Path, folder: Path, pictures: Pictures, faults: Sequence[str], crop: bool
) -> None:
    """Writes the page: one HTML file that loads nothing.

    Args:
        path: of the page.
        folder: that the pictures are of.
        pictures: as training reads them.
        faults: what is wrong; those that begin with a picture's name stand at it.
        crop: how the pictures were cut.

    Raises:
        UserError: the page cannot be written.
    """
    entries = _entries(folder, pictures, faults, crop)
    told = {fault for entry in entries for fault in entry.notes}
    html = _template().render(
        folder=errors.one_line(str(folder)),
        side=pictures.images.shape[1],
        entries=entries,
        masked=any(entry.masked for entry in entries),
        faults=[fault for fault in faults if fault not in told],
    )
    try:
        with atomic.atomic_path(path) as temporary:
            temporary.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise errors.UserError(
            f"contact_sheet: {path} cannot be written ({errors.one_line(error)}); give "
            "a file in a folder that is there"
        ) from error


def _entries(
    folder: Path, pictures: Pictures, faults: Sequence[str], crop: bool
) -> list[_Entry]:
    texts, cut = _texts(folder, pictures), _masks(folder, pictures, crop)
    entries = []
    for index, name in enumerate(pictures.names):
        height, width = (int(length) for length in pictures.sizes[index, 0, :2])
        shown, image = errors.one_line(name), pictures.images[index]
        mask = cut.get(name)
        entries.append(
            _Entry(
                name=shown,
                picture=_uri(image),
                masked=None if mask is None else _uri(_darkened(image, mask)),
                width=width,
                height=height,
                share=pictures.repeats[index] / sum(pictures.repeats),
                captions=[_around_the_word(line) for line in texts[index]],
                notes=[fault for fault in faults if fault.startswith(f"{shown}: ")],
            )
        )
    return entries


def _texts(folder: Path, pictures: Pictures) -> list[list[str]]:
    """The captions of each picture; none where they cannot be read, which is told."""
    try:
        found = captions.read_captions(folder, pictures.names, "auto").texts
    except errors.UserError:
        return [[] for _ in pictures.names]
    return [text.split("\n") if text else [] for text in found]


def _masks(
    folder: Path, pictures: Pictures, crop: bool
) -> dict[str, UInt8[np.ndarray, "H W"]]:
    """The masks beside the pictures; none where one cannot be used, which is told."""
    files = masks.beside(folder, pictures.names)
    side = pictures.images.shape[1]
    try:
        cut = masks.read_masks(files, pictures.names, pictures.sizes, side, crop)
    except errors.UserError:
        return {}
    return {
        name: mask
        for name, mask in zip(pictures.names, cut, strict=True)
        if name in files
    }


def _around_the_word(caption: str) -> list[str]:
    """Texts between which the new word stands; in front, where no place is marked."""
    parts = _PLACE.split(caption)
    return parts if len(parts) > 1 else ["", f", {caption}"]


def _darkened(
    image: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture, a fifth as bright where its mask is black."""
    kept = 0.2 + 0.8 * mask[..., None] / 255
    return (image * kept).round().astype(np.uint8)


def _uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ti_flax.data", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("contact_sheet.html.jinja")
