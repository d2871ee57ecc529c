"""A folder of pictures: what is read, refused, turned upright, cropped and encoded."""

import collections
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from ti_flax.data import buckets, crop
from ti_flax.data.caption_files import beside_a_picture
from ti_flax.data.decode import SIDECARS, SkippedError, read_picture
from ti_flax.data.masks import masks_among
from ti_flax.runtime.errors import UserError, listed

NAMES_IN_A_LINE = 3
# kohya's folders, whose pictures count N times in an epoch: 10_cat.
_REPEATED = re.compile(r"([0-9]{1,9})_.+")
_MOST_COUNTED = 10**6


class Pictures(NamedTuple):
    """The pictures of one concept, in the order of their files' names."""

    # The crops of each picture, as many of all, in 8-bit RGB: of one size each picture.
    crops: tuple[list[UInt8[np.ndarray, "_ _ 3"]], ...]
    cuts: tuple[crop.Cut, ...]
    # Of each picture, the path of its file inside the folder, with slashes.
    names: tuple[str, ...]
    # How many times each picture counts: as its sub-folder N_NAME says, or `subsets`.
    repeats: tuple[int, ...]
    # One line per file that was skipped or is not used as it is.
    notes: tuple[str, ...]

    @property
    def images(self) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """Of each picture the crop that stands for it where one is shown."""
        pairs = zip(self.crops, self.cuts, strict=True)
        return [crops[cut.middle] for crops, cut in pairs]

    def buckets(self) -> dict[buckets.Size, Int32[np.ndarray, "_"]]:
        """Numbers of the pictures of each (width, height), from the narrowest up."""
        sizes = [cut.size for cut in self.cuts]
        numbers = np.arange(len(sizes), dtype=np.int32)
        return {
            size: numbers[[each == size for each in sizes]]
            for size in sorted(set(sizes))
        }

    def counted(self) -> str:
        """The sub-folders, and how often their pictures count; empty without any."""
        pairs = zip(self.names, self.repeats, strict=True)
        counts = {name.rpartition("/")[0] or ".": count for name, count in pairs}
        if counts.keys() <= {"."}:
            return ""
        return listed(
            f"{name} ({count} times)" if count > 1 else name
            for name, count in counts.items()
        )

    def fingerprints(self) -> list[str]:
        """A line for each picture that tells whether another host has the same."""
        return [
            f"{_printable(name)} {_digest(crops).hex()[:12]}"
            for name, crops in zip(self.names, self.crops, strict=True)
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
                f"expected at most {_MOST_COUNTED}; give N_NAME or N:PATH of subsets a "
                "smaller N"
            )
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def read_pictures(
    folder: Path, rules: buckets.Cropping, subsets: Sequence[tuple[str, int]] = ()
) -> Pictures:
    """Reads every picture of `folder`, cut as `rules` say.

    The order is that of the names without regard to case, on every file system. A
    file that is no picture, is damaged or repeats the pixels of an earlier one (it
    would count twice in training) is skipped and named in the notes. So is a folder,
    but for those that are named N_NAME as kohya's: their pictures count N times.

    Args:
        folder: holds the pictures; see `SUFFIXES` for the kinds.
        rules: squares, as diffusers has them, or aspect buckets.
        subsets: paths inside `folder`, with slashes, of the folders to read in its
            place, and how often their pictures count; N_NAME means nothing there.

    Raises:
        UserError: a folder is missing or not a folder, or no picture is readable.
    """
    files, hidden = _list_subsets(folder, subsets) if subsets else _list_folder(folder)
    found: dict[Path, _Read | str] = {}
    first_name: dict[bytes, str] = {}
    for path, count in files:
        shown = _printable(path.relative_to(folder).as_posix())
        try:
            if not count:
                raise SkippedError("its pictures count 0 times")
            if subsets and path.is_dir():
                raise SkippedError("it is a folder that subsets does not name")
            each = _read(path, count, rules)
            same_as = first_name.setdefault(_digest(each.crops), shown)
            if same_as != shown:
                raise SkippedError(f"the same picture as {same_as}")
            found[path] = each
        except SkippedError as reason:
            found[path] = str(reason)  # the error itself would hold the pixels
    read = {path: each for path, each in found.items() if isinstance(each, _Read)}
    bucket_notes = _merge_buckets(read, rules)
    notes = _notes(folder, found | read)
    used = {path.parent for path in read}
    empty = [inside for inside, _ in subsets if folder / inside not in used]
    notes += [f"no picture in {_printable(inside)} of subsets" for inside in empty]
    if hidden:
        notes.append(f"skipped {len(hidden)} hidden: {_shorten(hidden, ', ')}")
    if not read:
        seen = _shorten(notes, "; ") if notes else "it is empty"
        raise UserError(
            f"train_data_dir: no readable picture in {_printable(str(folder))}"
            f" ({seen}); put the concept's pictures there, as .jpg or .png files"
        )
    notes += bucket_notes
    return Pictures(
        tuple(each.crops for each in read.values()),
        tuple(each.cut for each in read.values()),
        tuple(path.relative_to(folder).as_posix() for path in read),
        tuple(each.count for each in read.values()),
        tuple(notes),
    )


class _Read(NamedTuple):
    """One picture, how often it counts, and in words what decoding did to it."""

    crops: list[UInt8[np.ndarray, "_ _ 3"]]
    cut: crop.Cut
    count: int
    changes: list[str]


def _read(path: Path, count: int, rules: buckets.Cropping) -> _Read:
    picture, changes = read_picture(path)
    how = crop.cut(*picture.size, rules)
    return _Read(how.crops(picture), how, count, changes)


def _notes(folder: Path, found: Mapping[Path, _Read | str]) -> list[str]:
    """A line for each file that is skipped, for a reason, or not used as it is.

    One for all that phones put beside their pictures.
    """
    notes, beside = [], []
    for path, each in found.items():
        shown = _printable(path.relative_to(folder).as_posix())
        if isinstance(each, str) and path.suffix.lower() in SIDECARS:
            beside.append(shown)
            continue
        if isinstance(each, str):
            notes.append(f"skipped {shown}: {each}")
            continue
        changes, (width, height) = [*each.changes], each.cut.original
        if each.cut.enlarged:
            changes.append(f"enlarged from {width}x{height} px")
        if changes:
            notes.append(f"{shown}: {', '.join(changes)}")
    if beside:
        count, names = len(beside), _shorten(beside, ", ")
        notes.append(f"skipped {count} beside a phone's pictures: {names}")
    return notes


def _merge_buckets(read: dict[Path, _Read], rules: buckets.Cropping) -> list[str]:
    """Cuts the pictures of buckets above `max_buckets` anew; a line for each move.

    They are read a second time: all originals together may not fit into memory.
    """
    if not rules.enable_bucket:
        return []
    chosen = [each.cut.size for each in read.values()]
    originals = [each.cut.original for each in read.values()]
    moved = buckets.merged(chosen, originals, rules)
    paths = list(read)
    for number, target in moved.items():
        picture, _ = read_picture(paths[number])
        how = crop.covered(*picture.size, target, rules)
        each = read[paths[number]]
        read[paths[number]] = each._replace(crops=how.crops(picture), cut=how)
    moves = collections.Counter((chosen[number], to) for number, to in moved.items())
    return [
        f"bucket {old[0]}x{old[1]} ({count}): cut to {new[0]}x{new[1]}; "
        f"max_buckets {len(set(chosen))} would keep all buckets"
        for (old, new), count in moves.items()
    ]


def _digest(crops: Sequence[UInt8[np.ndarray, "H W 3"]]) -> bytes:
    """SHA-256 of the pixels."""
    return hashlib.sha256(b"".join(map(bytes, crops))).digest()


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


def _list_subsets(
    folder: Path, subsets: Sequence[tuple[str, int]]
) -> tuple[list[tuple[Path, int]], list[str]]:
    """As `_list_folder`, of what lies in these folders inside `folder`.

    Their order is that of the names, whatever that of `subsets`.
    """
    files: list[tuple[Path, int]] = []
    hidden: list[str] = []
    ways = [folder / inside for inside, _ in subsets]
    named = {place for way in ways for place in (way, *way.parents)}
    for inside, count in sorted(subsets, key=lambda s: _in_order(*s[0].split("/"))):
        visible, more = _entries(folder / inside, "subsets")
        files += [(path, count) for path in visible if path not in named]
        hidden += [f"{_printable(inside)}/{name}" for name in more]
    return files, hidden


def _in_order(*names: str) -> list[tuple[str, str]]:
    # The name itself breaks ties, so that no order depends on the file system.
    return [(name.casefold(), name) for name in names]


def _entries(folder: Path, key: str = "train_data_dir") -> tuple[list[Path], list[str]]:
    """Visible entries in order, without captions and masks, and hidden ones' names."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: _in_order(path.name))
    except OSError as error:
        raise UserError(
            f"{key}: expected a folder of pictures, found"
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
