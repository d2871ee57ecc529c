"""What is read of a folder of pictures, and what is wrong with it."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ti_flax.data import decode, masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.captioned import Captioned
from ti_flax.data.captions import Captions
from ti_flax.data.contact_sheet import Seen
from ti_flax.data.folder import Pictures, read_pictures
from ti_flax.runtime import errors
from ti_flax.text.captions import Rules

# Fewer show too few views to tell the concept from its surroundings (Gal et al. 2023
# train on 3 to 5).
_FEWEST = 3
# Correlation of small grey versions. The same photo scaled, saved again, brightened or
# moved by a hundredth of its width stays above; other views of one thing stay below.
_ALIKE = 0.97
_THUMBNAIL = 32, 32
# A prompt has 75 tokens beside its marks, and every word is at least one.
_MOST_WORDS = 75
_BESIDE, _NO_RUN = masks.Source(), Captioned()


def examine(
    folder: Path,
    rules: Cropping,
    source: masks.Source = _BESIDE,
    subsets: Sequence[tuple[str, int]] = (),
    captioned: Captioned = _NO_RUN,
) -> Seen:
    """The folder as training would read it, and a line for each fault.

    Args:
        folder: holds the pictures.
        rules: how they are cut.
        source: where their masks are.
        subsets: the folders in it to read, and how often their pictures count.
        captioned: where their captions are, and how these become prompts.

    Raises:
        UserError: there is nothing to train on, or no folder `source` names.
    """
    pictures = read_pictures(folder, rules, subsets)
    faults = [_with_hint(note, source) for note in pictures.notes]
    for first, second, mirrored in _near_duplicates(pictures.images):
        names = pictures.names[second], pictures.names[first]
        mirror = ", mirrored" if mirrored else ""
        faults.append(
            f"{names[0]}: nearly the same as {names[1]}{mirror}; both count in training"
        )
    captions = None
    try:
        captions = captioned.read(folder, pictures.names)
        faults += _caption_faults(captions, pictures.names, captioned)
    except errors.UserError as error:
        faults.append(str(error))
    cut, mask_faults = _read_masks(folder, pictures, source)
    faults += mask_faults
    if len(pictures.names) < _FEWEST:
        faults.append(
            f"only {len(pictures.names)} to train on; {_FEWEST} to 5 different views "
            "tell the concept from its surroundings"
        )
    return Seen(pictures, captions, cut, faults, captioned)


def _with_hint(note: str, source: masks.Source) -> str:
    offered = decode.TRANSPARENT in note and not source.keys
    return f"{note}; see it with --alpha_mask" if offered else note


def _caption_faults(
    captions: Captions, names: Sequence[str], captioned: Captioned
) -> list[str]:
    faults = [*captions.notes]
    pairs = [*zip(names, captions.texts, strict=True)]
    without = [name for name, text in pairs if not text]
    if without and captions.source != "none":
        faults.append(
            f"no caption for {errors.listed(without)}; templates take their place"
        )
    for number, (name, text) in enumerate(pairs):
        if not captioned.has_word(text, number):
            faults.append(
                f"caption of {errors.one_line(name)}: it does not hold the new word, "
                "and training would end; write [name] where that goes"
            )
        count = max((len(line.split()) for line in text.split("\n")), default=0)
        if count > _MOST_WORDS:
            faults.append(
                f"{errors.one_line(name)}: its caption has {count} words; a prompt has "
                f"room for {_MOST_WORDS} at most, the rest is cut off"
            )
    return faults


def _read_masks(
    folder: Path, pictures: Pictures, source: masks.Source
) -> tuple[dict[str, masks.Masks | None], list[str]]:
    """As `Seen` has them; pictures without, where others have one, and what is none."""
    names = pictures.names
    files = masks.files_of(source, folder, names)
    read: dict[str, masks.Masks | None] = dict.fromkeys(names)
    faults = []
    for name, cut in zip(names, pictures.cuts, strict=True):
        try:
            (read[name],) = masks.read_masks(files, [name], [cut], source.alpha_mask)
        except errors.UserError as error:
            faults.append(str(error))
    white = {
        name for name, mask in read.items() if mask is not None and masks.is_white(mask)
    }
    # Alpha that is white is what an opaque picture has, a file what somebody made.
    having = [
        name
        for name in names
        if name in files and not (source.alpha_mask and name in white)
    ]
    without = [name for name in names if name not in having]
    if source.keys and len(white) == len(names):
        faults.append(masks.NONE_FOUND)
    elif having and without:
        faults.insert(0, f"no mask for {errors.listed(without)}; learned whole")
    return {name: read[name] for name in having}, faults


def describe_masks(cut: Collection[str], source: masks.Source = _BESIDE) -> str:
    """One line: how many pictures have a mask, and what reads it."""
    keys = " and ".join(["masked_loss", *source.keys])
    told = f"of {len(cut)} pictures, read with {keys}" if cut else "none"
    return f"masks: {told}"


def describe_captions(captions: Captions | None, rules: Rules = _NO_RUN.rules) -> str:
    """One line: where captions are, and how many say where the new word goes."""
    if captions is None:  # told as a fault
        return "captions: not read"
    if captions.source == "none":
        return "captions: none, prompts come from templates"
    texts = [text for text in captions.texts if text]
    if rules.trigger_word or rules.caption_prefix is not None:
        return (
            f"captions: of {len(texts)} pictures ({captions.source}), with the new word"
            " as caption_prefix and trigger_word say"
        )
    marked = sum("[name]" in text or "{}" in text for text in texts)
    return (
        f"captions: of {len(texts)} pictures ({captions.source}), {marked} with [name] "
        "or {} where the new word goes; in the others it is put in front"
    )


def _near_duplicates(
    images: Collection[UInt8[np.ndarray, "_ _ 3"]],
) -> Iterator[tuple[int, int, bool]]:
    """Pairs (earlier, later, whether one is mirrored) that look alike."""
    plain = np.stack([_thumbnail(image) for image in images])
    # float32 would round past 1 and hide nothing, but float64 costs nothing either.
    for mirrored in (False, True):
        other = plain[:, :, ::-1] if mirrored else plain
        alike = np.einsum("ahw,bhw->ab", plain, other) > _ALIKE
        for first, second in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            yield int(first), int(second), mirrored


def _thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w"]:
    """A small grey version with mean 0 and length 1; one of a single grey is zeros."""
    small = Image.fromarray(image).convert("L").resize(_THUMBNAIL, Image.Resampling.BOX)
    grey = np.asarray(small, np.float64)
    grey -= grey.mean()
    return grey / (np.linalg.norm(grey) or 1.0)
