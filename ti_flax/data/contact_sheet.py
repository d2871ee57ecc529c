"""A page with what a model will see of a folder: pictures, masks, captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.data.captioned import Captioned
from ti_flax.data.captions import Captions
from ti_flax.data.crop import Cut
from ti_flax.data.folder import Pictures
from ti_flax.data.masks import Masks
from ti_flax.runtime import atomic, errors, pages

# Twice that of the page's layout, px.
_SIDE = 448
# What of a picture a fault may be of.
_ABOUT = ("mask of ", "caption of ")
# Forms of a caption where something in it is random.
_MOST_FORMS = 8


class _Entry(NamedTuple):
    """What the page says of one picture."""

    name: str
    # Of each crop: the picture, and where it has a mask, the masked picture.
    crops: list[list[str]]
    # What stands in place of the masked picture where there is none.
    unmasked: str
    cut: str
    share: float
    # Of each prompt made of its captions the texts around the places of the new word.
    captions: list[list[str]]
    # How many more forms of them there are.
    more: int
    notes: list[str]


class Seen(NamedTuple):
    """What was found in a folder of pictures."""

    pictures: Pictures
    # None where they cannot be read, which is a fault.
    captions: Captions | None
    # By the names of the pictures that have one; None where it cannot be used, which
    # is a fault.
    masks: dict[str, Masks | None]
    faults: list[str]
    captioned: Captioned = Captioned()


def write(path: Path, folder: Path, seen: Seen) -> None:
    """Writes the page: one HTML file that loads nothing.

    Args:
        path: of the page.
        folder: that the pictures are of.
        seen: what is in it; faults of a picture or of its mask stand at it.

    Raises:
        UserError: the page cannot be written.
    """
    entries = _entries(seen)
    told = {fault for entry in entries for fault in entry.notes}
    html = pages.template("ti_flax.data", "contact_sheet.html.jinja").render(
        folder=errors.one_line(str(folder if folder.name else folder.resolve())),
        counted=seen.pictures.counted(),
        word=seen.captioned.rules.placeholder_token,
        sizes=", ".join(f"{w} x {h} px" for w, h in seen.pictures.buckets()),
        entries=entries,
        crops=max(len(entry.crops) for entry in entries),
        masked=any(mask is not None for mask in seen.masks.values()),
        faults=[fault for fault in seen.faults if fault not in told],
    )
    try:
        with atomic.atomic_path(path) as temporary:
            temporary.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise errors.UserError(
            f"contact_sheet: {path} cannot be written ({errors.one_line(error)}); give "
            "a file in a folder that is there"
        ) from error


def _entries(seen: Seen) -> list[_Entry]:
    pictures, entries = seen.pictures, []
    texts = seen.captions.texts if seen.captions else [""] * len(pictures.names)
    for index, name in enumerate(pictures.names):
        shown, cut = errors.one_line(name), pictures.cuts[index]
        forms = _forms(seen.captioned, texts[index], index)
        mask = seen.masks.get(name)
        entries.append(
            _Entry(
                name=shown,
                crops=_crops(cut, pictures.crops[index], mask),
                unmasked="mask not read" if name in seen.masks else "no mask",
                cut=f"{cut.size[0]} x {cut.size[1]} px of "
                f"{cut.original[0]} x {cut.original[1]}",
                share=pictures.repeats[index] / sum(pictures.repeats),
                captions=forms[:_MOST_FORMS],
                more=max(0, len(forms) - _MOST_FORMS),
                notes=[
                    fault
                    for fault in seen.faults
                    if fault.startswith(
                        tuple(f"{about}{shown}: " for about in ("", *_ABOUT))
                    )
                ],
            )
        )
    return entries


def _crops(
    cut: Cut, crops: Sequence[UInt8[np.ndarray, "H W 3"]], masks: Masks | None
) -> list[list[str]]:
    """Each crop, and where there is a mask, the crop with it.

    Once each: of a picture that fits its size, all crops are the same.
    """
    distinct = [cut.corners.index(corner) for corner in dict.fromkeys(cut.corners)]
    if masks is None:
        return [[_uri(crops[i])] for i in distinct]
    return [[_uri(crops[i]), _uri(_darkened(crops[i], masks[i]))] for i in distinct]


def _forms(captioned: Captioned, text: str, number: int) -> list[list[str]]:
    """The prompts of a picture's captions, each once: texts between its new words."""
    prompts = dict.fromkeys(captioned.prompts(text, number))
    return [prompt.split(captioned.rules.placeholder_token) for prompt in prompts]


def _darkened(
    image: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture, a fifth as bright where its mask is black."""
    kept = 0.2 + 0.8 * mask[..., None] / 255
    return (image * kept).round().astype(np.uint8)


def _uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    return pages.data_uri(Image.fromarray(image), _SIDE)
