"""The captions of a folder of pictures, from whichever files hold them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ti_flax.data import caption_files
from ti_flax.data.siblings import exact_stem
from ti_flax.runtime.errors import UserError, listed

Source = Literal["auto", "none", "txt", "caption", "jsonl", "json", "filename"]

# What explicit sources look for, in words.
_FILES = {
    "txt": "NAME.txt beside pictures NAME.jpg",
    "caption": "NAME.caption beside pictures NAME.jpg",
    "jsonl": caption_files.METADATA,
    "json": "one .json file with kohya's metadata",
}


class Captions(NamedTuple):
    """What files say of each picture."""

    # Where from: a `Source`, but not "auto".
    source: str
    # A text of each picture, its lines without blank ones; empty where it has none.
    texts: tuple[str, ...]
    # One line for each thing that is odd.
    notes: tuple[str, ...]


def read_captions(
    folder: Path, pictures: Sequence[str], source: Source, separator: str = ","
) -> Captions:
    """Captions of the pictures, which are given by their paths inside the folder.

    `auto` takes the one kind of file that has captions of these pictures; none, if
    there is no such file. `separator` goes between caption and tags of kohya's
    metadata.

    Raises:
        UserError: there are several kinds, not the kind that is asked for, or a file
            is damaged.
    """
    if source == "auto":
        kinds = found_kinds(folder, pictures)
        if len(kinds) > 1:
            raise UserError(
                f"caption_source: expected captions of one kind in {folder}, found "
                f"{' and '.join(kinds)}; set it to one of them, or to none"
            )
        source = kinds[0] if kinds else "none"
    if source == "none":
        return Captions("none", ("",) * len(pictures), ())
    if source == "filename":
        return Captions("filename", tuple(map(from_file_name, pictures)), ())
    read = _read(folder, pictures, source, separator)
    empty = [name for name in pictures if read.texts.get(name) == ""]
    notes = read.notes
    if empty:
        notes = [*notes, f"the caption of {listed(empty)} is empty"]
    texts = tuple(read.texts.get(name, "") for name in pictures)
    return Captions(source, texts, tuple(notes))


def found_kinds(folder: Path, pictures: Sequence[str]) -> list[str]:
    """The kinds of files that have captions of these pictures."""
    found = {
        "txt": caption_files.sidecars(folder, pictures, ".txt"),
        "caption": caption_files.sidecars(folder, pictures, ".caption"),
        "jsonl": caption_files.metadata_files(folder, pictures),
        "json": caption_files.kohya_files(folder, pictures),
    }
    return [kind for kind, files in found.items() if files]


def from_file_name(picture: str) -> str:
    """The name of the file without its ending and the number that it may start with.

    As AUTOMATIC1111 reads names: "00001-0-a red cat.png" is "a red cat".
    """
    return re.sub(r"^[-\d]+\s*", "", exact_stem(picture)).strip()


def _read(
    folder: Path, pictures: Sequence[str], source: str, separator: str
) -> caption_files.Read:
    if source in ("txt", "caption"):
        files = caption_files.sidecars(folder, pictures, f".{source}")
        if files:
            return caption_files.read_sidecars(files)
    elif source == "jsonl":
        lists = caption_files.metadata_files(folder, pictures)
        if lists:
            return caption_files.read_jsonl(folder, pictures, lists)
    else:
        lists = caption_files.json_files(folder)
        if len(lists) > 1:  # some may be another program's
            lists = caption_files.kohya_files(folder, pictures)
        if len(lists) == 1:
            return caption_files.read_kohya(pictures, lists[0], separator)
        if lists:
            raise UserError(
                f"caption_source json: expected {_FILES['json']} in {folder}, found "
                f"{listed(path.name for path in lists)}; keep one there"
            )
    raise UserError(
        f"caption_source {source}: expected {_FILES[source]} in {folder}, found none; "
        "write captions, or set caption_source to none"
    )
