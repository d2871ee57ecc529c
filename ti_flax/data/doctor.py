"""`python -m ti_flax.data DIR`: what is read of a folder, and what is wrong.

Exit code 0: every picture is used as it is. 1: it can be trained on, but look at what
is said. 2: there is nothing to train on.
"""

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ti_flax.data import contact_sheet, decode, masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.captions import Captions, read_captions
from ti_flax.data.contact_sheet import Seen
from ti_flax.data.folder import Pictures, read_pictures
from ti_flax.runtime import arguments, errors

FAULTS_EXIT_CODE = 1
_LARGEST_SIDE = 4096  # as `config.fields` has it for training

# Fewer show too few views to tell the concept from its surroundings (Gal et al. 2023
# train on 3 to 5).
_FEWEST = 3
# Correlation of small grey versions. The same photo scaled, saved again, brightened or
# moved by a hundredth of its width stays above; other views of one thing stay below.
_ALIKE = 0.97
_THUMBNAIL = 32, 32
# A prompt has 75 tokens beside its marks, and every word is at least one.
_MOST_WORDS = 75
_BESIDE = masks.Source()


def examine(folder: Path, rules: Cropping, source: masks.Source = _BESIDE) -> Seen:
    """The folder as training would read it, and a line for each fault.

    Raises:
        UserError: there is nothing to train on, or no folder `source` names.
    """
    pictures = read_pictures(folder, rules)
    faults = [_with_hint(note, source) for note in pictures.notes]
    for first, second, mirrored in _near_duplicates(pictures.images):
        names = pictures.names[second], pictures.names[first]
        mirror = ", mirrored" if mirrored else ""
        faults.append(
            f"{names[0]}: nearly the same as {names[1]}{mirror}; both count in training"
        )
    captions = None
    try:
        captions = read_captions(folder, pictures.names, "auto")
        faults += _caption_faults(captions, pictures.names)
    except errors.UserError as error:
        faults.append(str(error))
    cut, mask_faults = _read_masks(folder, pictures, source)
    faults += mask_faults
    if len(pictures.names) < _FEWEST:
        faults.append(
            f"only {len(pictures.names)} to train on; {_FEWEST} to 5 different views "
            "tell the concept from its surroundings"
        )
    return Seen(pictures, captions, cut, faults)


def _with_hint(note: str, source: masks.Source) -> str:
    offered = decode.TRANSPARENT in note and not source.keys
    return f"{note}; see it with --alpha_mask" if offered else note


def _caption_faults(captions: Captions, names: Sequence[str]) -> list[str]:
    faults = [*captions.notes]
    pairs = [*zip(names, captions.texts, strict=True)]
    without = [name for name, text in pairs if not text]
    if without and captions.source != "none":
        faults.append(
            f"no caption for {errors.listed(without)}; templates take their place"
        )
    for name, text in pairs:
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


def describe_captions(captions: Captions | None) -> str:
    """One line: where captions are, and how many say where the new word goes."""
    if captions is None:  # told as a fault
        return "captions: not read"
    if captions.source == "none":
        return "captions: none, prompts come from templates"
    texts = [text for text in captions.texts if text]
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


def main() -> None:
    parser = arguments.Parser(
        prog="python -m ti_flax.data", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("folder", type=Path, help="holds the concept's pictures")
    parser.add_argument(
        "--contact_sheet",
        type=Path,
        metavar="FILE",
        help="write an HTML page of the pictures as cropped, masks, captions and notes",
    )
    _add_mask_source(parser)
    _add_cropping(parser)
    given = parser.parse()
    folder, source = given.folder, _mask_source(given)
    seen = examine(folder, _cropping(given), source)
    for fault in seen.faults:
        print(fault)
    print(describe_captions(seen.captions))
    print(describe_masks(seen.masks, source))
    print(f"{len(seen.pictures.names)} pictures to train on, {len(seen.faults)} notes")
    if given.contact_sheet is not None:
        contact_sheet.write(given.contact_sheet, folder, seen)
        print(f"wrote {given.contact_sheet}")
    if seen.faults:
        sys.exit(FAULTS_EXIT_CODE)


def _add_mask_source(parser: arguments.Parser) -> None:
    """The keys of a run that say where masks are."""
    parser.add_argument(
        "--alpha_mask",
        action="store_true",
        help="the alpha channel of a picture is its mask; default: NAME-masklabel.png",
    )
    parser.add_argument(
        "--conditioning_data_dir",
        type=_place,
        metavar="DIR",
        help="folder of the masks, each with the name of its picture",
    )


def _place(given: str) -> Path:
    """As `config.fields` has it for training."""
    if not given:  # would mean the current folder
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(os.path.expanduser(given))


def _mask_source(given: argparse.Namespace) -> masks.Source:
    source = masks.Source(given.alpha_mask, given.conditioning_data_dir)
    if len(source.keys) > 1:
        raise errors.UserError(
            "expected alpha_mask or conditioning_data_dir, found both; remove one"
        )
    return source


def _add_cropping(parser: arguments.Parser) -> None:
    """The keys of a run that say how pictures are cut, as far as a look needs them."""
    parser.add_argument("--resolution", type=int, default=512, help="default: 512")
    parser.add_argument(
        "--no_center_crop",
        action="store_true",
        help="squash pictures into squares, as diffusers does",
    )
    for key, told in (
        ("enable_bucket", "cut pictures to sizes near their own aspect ratio"),
        ("bucket_no_upscale", "with --enable_bucket, make no picture larger"),
        ("random_crop", "show the crops that random_crop draws from"),
    ):
        parser.add_argument(f"--{key}", action="store_true", help=told)
    for key, told in (
        ("min_bucket_reso", "least side of a bucket; default: half the resolution"),
        ("max_bucket_reso", "greatest side of a bucket; default: twice"),
        ("bucket_reso_steps", "pixels between the sides of buckets; default: 64"),
        ("max_buckets", "buckets to keep; default: 4"),
        ("crop_variants", "crops of random_crop; default: 4"),
    ):
        default = Cropping._field_defaults[key]
        parser.add_argument(f"--{key}", type=int, default=default, help=told)


def _cropping(given: argparse.Namespace) -> Cropping:
    for key, value in vars(given).items():
        if type(value) is int and not 1 <= value <= _LARGEST_SIDE:
            raise errors.UserError(
                f"{key}: expected 1 to {_LARGEST_SIDE}, found {value}"
            )
    rules = {key: getattr(given, key, None) for key in Cropping._fields}
    return Cropping(**rules | {"center_crop": not given.no_center_crop})
