"""A folder of pictures: what is read, refused, turned upright, cropped and encoded."""

import hashlib
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from ti_flax.data import crop
from ti_flax.data.caption_files import beside_a_picture
from ti_flax.data.decode import SkippedError, read_picture
from ti_flax.data.masks import masks_among
from ti_flax.runtime.errors import UserError

NAMES_IN_A_LINE = 3
# kohya's folders, whose pictures count N times in an epoch: 10_cat.
_REPEATED = re.compile(r"([0-9]{1,9})_.+")
_MOST_COUNTED = 10**6


class Pictures(NamedTuple):
    """The pictures of one concept, in the order of their files' names."""

    # 8-bit RGB, H = W = resolution.
    images: UInt8[np.ndarray, "N H W 3"]
    # In pixels, of each picture and of its mirror image: (height, width) as in the
    # file, (top, left) of the crop in the resized picture, (height, width) of the crop.
    sizes: Int32[np.ndarray, "N 2 6"]
    # Of each picture, the path of its file inside the folder, with slashes.
    names: tuple[str, ...]
    # How many times each picture counts; 1 but for those of a sub-folder N_NAME.
    repeats: tuple[int, ...]
    # One line per file that was skipped or is not used as it is.
    notes: tuple[str, ...]

    def fingerprints(self) -> list[str]:
        """A line for each picture that tells whether another host has the same."""
        return [
            f"{_printable(name)} {hashlib.sha256(image).hexdigest()[:12]}"
            for name, image in zip(self.names, self.images, strict=True)
        ]

    def order(self) -> Int32[np.ndarray, "M"]:
        """Numbers of the pictures, each as often as it counts beside the others.

        Raises:
            UserError: that is a list of more than a million.
        """
        once = math.gcd(*self.repeats)
        counts = np.array(self.repeats, np.int64) // once
        if counts.sum() > _MOST_COUNTED:
            raise UserError(
                f"train_data_dir: pictures count {counts.sum()} times together, "
                f"expected at most {_MOST_COUNTED}; give sub-folders N_NAME a smaller N"
            )
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def read_pictures(folder: Path, resolution: int, center_crop: bool) -> Pictures:
    """Reads every picture of `folder` as `resolution` x `resolution` pixels.

    The order is that of the names without regard to case, on every file system. A
    file that is no picture, is damaged or repeats the pixels of an earlier one (it
    would count twice in training) is skipped and named in the notes. So is a folder,
    but for those that are named N_NAME as kohya's: their pictures count N times.

    Args:
        folder: holds the pictures; see `SUFFIXES` for the kinds.
        resolution: side of the square result, px.
        center_crop: cut the largest centred square out of each picture; otherwise
            squash the whole picture into the square, as diffusers does.

    Raises:
        UserError: `folder` is missing, not a folder or without a readable picture.
    """
    files, hidden = _list_folder(folder)
    images, sizes, names, repeats, notes = [], [], [], [], []
    first_name: dict[bytes, str] = {}
    for path, count in files:
        name = path.relative_to(folder).as_posix()
        shown = _printable(name)
        try:
            if not count:
                raise SkippedError("its pictures count 0 times")
            picture, changes = read_picture(path)
            if min(picture.size) < resolution:
                changes.append(f"enlarged from {picture.width}x{picture.height} px")
            image = np.asarray(crop.make_square(picture, resolution, center_crop))
            same_as = first_name.setdefault(hashlib.sha256(image).digest(), shown)
            if same_as != shown:
                raise SkippedError(f"the same picture as {same_as}")
        except SkippedError as reason:
            notes.append(f"skipped {shown}: {reason}")
            continue
        images.append(image)
        sizes.append(crop.sizes(*picture.size, resolution, center_crop))
        names.append(name)
        repeats.append(count)
        if changes:
            notes.append(f"{shown}: {', '.join(changes)}")
    if hidden:
        notes.append(f"skipped {len(hidden)} hidden: {_shorten(hidden, ', ')}")
    if not images:
        found = _shorten(notes, "; ") if notes else "it is empty"
        raise UserError(
            f"train_data_dir: no readable picture in {_printable(str(folder))}"
            f" ({found}); put the concept's pictures there, as .jpg or .png files"
        )
    return Pictures(
        np.stack(images),
        np.array(sizes, np.int32),
        tuple(names),
        tuple(repeats),
        tuple(notes),
    )


def _list_folder(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """What may be a picture and how often it counts, in order; hidden entries' names.

    Captions and masks beside pictures are not in it.
    """
    files: list[tuple[Path, int]] = []
    visible, hidden = _entries(folder)
    for path in visible:
        repeated = _REPEATED.fullmatch(path.name)
        count = int(repeated[1]) if repeated and path.is_dir() else None
        if not count:
            files.append((path, 1 if count is None else 0))
            continue
        inner, more = _entries(path)
        files += [(each, count) for each in inner] or [(path, 1)]
        hidden += [f"{_printable(path.name)}/{name}" for name in more]
    return files, hidden


def _entries(folder: Path) -> tuple[list[Path], list[str]]:
    """Visible entries in order, without captions and masks, and hidden ones' names."""
    try:
        # The name itself breaks ties, so that no order depends on the file system.
        entries = sorted(folder.iterdir(), key=lambda p: (p.name.casefold(), p.name))
    except OSError as error:
        raise UserError(
            "train_data_dir: expected a folder of pictures, found"
            f" {_printable(str(folder))} ({error.strerror}); give the folder that holds"
            " the concept's pictures"
        ) from error
    hidden = [_printable(p.name) for p in entries if p.name.startswith(".")]
    visible = [p for p in entries if not p.name.startswith(".")]
    names = [path.name for path in visible]
    others = beside_a_picture(names) | masks_among(names)
    return [path for path in visible if path.name not in others], hidden


def _printable(name: str) -> str:
    """`name`, escaped where it would break a line or a terminal."""
    return name if name.isprintable() else ascii(name)


def _shorten(parts: list[str], separator: str) -> str:
    more = len(parts) - NAMES_IN_A_LINE
    tail = [f"and {more} more"] if more > 0 else []
    return separator.join(parts[:NAMES_IN_A_LINE] + tail)
