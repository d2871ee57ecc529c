"""Files that hold captions: sidecars, metadata.jsonl and kohya's metadata.

Each reader gives texts by the picture's path inside the folder; lines of a text that
are blank are gone, and letters are composed (NFC), as the tokenizer has them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ti_flax.data.caption_text import cleaned, composed, parse_json, parts_of, read_text
from ti_flax.data.decode import ENDINGS
from ti_flax.data.siblings import exact_stem, siblings
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import MAX_JSON_BYTES, names_in

METADATA = "metadata.jsonl"
_SIDECARS = (".txt", ".caption")
# The names that the Hugging Face Hub and kohya's scripts give: meta_cap.json.
_LIST = re.compile(r"meta.*\.jsonl?", re.IGNORECASE)
# A caption has at most 77 tokens that count; a book is a slip.
_MAX_BYTES = 2**16


class Read(NamedTuple):
    """Texts by the path of their picture, and a line for each that has none."""

    texts: dict[str, str]
    notes: list[str]


def beside_a_picture(names: Collection[str]) -> set[str]:
    """Those of a folder's files that may hold captions of its pictures."""
    stems = {exact_stem(name) for name in names if name.lower().endswith(ENDINGS)}
    return {
        name
        for name in names
        if _LIST.fullmatch(name)
        or (name.lower().endswith(_SIDECARS) and exact_stem(name) in stems)
    }


def sidecars(folder: Path, pictures: Sequence[str], suffix: str) -> dict[str, Path]:
    """The file NAME`suffix` of each picture that has one.

    Letter case of the ending is not told apart, nor are composed and decomposed letters
    (macOS) of the name.

    Raises:
        UserError: a picture has two.
    """
    places = {picture: folder / picture for picture in pictures}
    found = siblings(places, suffix, exact_stem)
    for picture, files in found.items():
        if len(files) > 1:
            raise UserError(
                f"caption of {one_line(picture)}: expected one file, found "
                f"{' and '.join(ascii(file.name) for file in files)}; keep one of them"
            )
    return {picture: file for picture, (file,) in found.items()}


def read_sidecars(files: Mapping[str, Path]) -> Read:
    read = Read({}, [])
    for picture, path in files.items():
        read.texts[picture] = cleaned(path, read_text(path, _MAX_BYTES))
    return read


def metadata_files(folder: Path, pictures: Sequence[str]) -> list[Path]:
    """Each metadata.jsonl in the folder or in one of its pictures' sub-folders."""
    return [
        folder / inside / METADATA
        for inside, names in _folders(folder, ["", *pictures])
        if METADATA in names
    ]


def read_jsonl(folder: Path, pictures: Sequence[str], files: Sequence[Path]) -> Read:
    """Objects, one a line: `file_name` (or `image`) and `text` (or `caption`).

    Raises:
        UserError: a line is no such object, leads out of the folder or repeats one.
    """
    known = {composed(name): name for name in pictures}
    read, lines = Read({}, []), dict[str, str]()
    for path in files:
        inside = path.parent.relative_to(folder)
        present = {composed(name) for name in names_in(path.parent)}
        for number, line in enumerate(read_text(path, MAX_JSON_BYTES).split("\n"), 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            name, text = _entry(place, line)
            parts = parts_of(name)
            if not parts or ".." in parts or re.match(r"[/\\]|[A-Za-z]:", name):
                raise UserError(
                    f"{place}: expected a picture in this folder, found "
                    f"{shown(name)}; give its path from here"
                )
            key = composed((PurePosixPath(inside.as_posix(), *parts)).as_posix())
            if key in lines:
                raise UserError(
                    f"{place}: {shown(name)} has a caption already in {lines[key]}; "
                    "keep one (lines of one text are several captions)"
                )
            lines[key] = f"line {number}"
            if key in known:
                read.texts[known[key]] = cleaned(place, text)
            elif composed("/".join(parts)) not in present:
                read.notes.append(f"{place}: there is no picture {shown(name)}")
    return read


def _entry(place: str, line: str) -> tuple[str, str]:
    content = parse_json(place, line)
    name, text = None, None
    if isinstance(content, dict):
        name = content.get("file_name", content.get("image"))
        text = content.get("text", content.get("caption"))
    if not isinstance(name, str) or not isinstance(text, str):
        raise UserError(
            f'{place}: expected {{"file_name": "...", "text": "..."}}, found '
            f"{shown(content)}; mend it, or set caption_source to none"
        )
    return name, text


def kohya_files(folder: Path, pictures: Sequence[str]) -> list[Path]:
    """The .json files in the folder that look like kohya's metadata of its pictures."""
    found = []
    for path in json_files(folder):
        try:
            content = parse_json(str(path), read_text(path, MAX_JSON_BYTES))
            if _matches(content, pictures):
                found.append(path)
        except UserError:  # some other program's
            continue
    return found


def json_files(folder: Path) -> list[Path]:
    """All .json files in the folder that are not hidden."""
    names = [name for name in names_in(folder) if not name.startswith(".")]
    return [folder / name for name in names if name.lower().endswith(".json")]


def read_kohya(pictures: Sequence[str], path: Path, separator: str) -> Read:
    """kohya's {path: {"caption", "tags"}}: a caption, tags after it.

    A path may be another machine's, and may lack the ending: what counts is that it
    ends as that of the picture. Tags follow each line of a caption.

    Raises:
        UserError: it is no such object, or two of its paths mean the same picture.
    """
    content = parse_json(str(path), read_text(path, MAX_JSON_BYTES))
    if not isinstance(content, dict):
        raise UserError(
            f'{path}: expected {{"picture": {{"caption": "..."}}}}, found '
            f"{shown(content)}; give the metadata as kohya's scripts write it"
        )
    read, matches = Read({}, []), _matches(content, pictures)
    for key, picture in matches.items():
        if picture in read.texts:
            raise UserError(
                f"{path}: {shown(key)} and another path mean {one_line(picture)}; "
                "keep one"
            )
        text = _kohya_text(f"{path}, {shown(key)}", content[key], separator)
        read.texts[picture] = cleaned(path, text)
    for key in content:
        if key not in matches:
            read.notes.append(f"{path}: there is no picture {shown(key)}")
    return read


def _kohya_text(place: str, entry: Any, separator: str) -> str:
    said = [entry.get(key) for key in ("caption", "tags")] if _is_entry(entry) else [1]
    if not all(one is None or isinstance(one, str) for one in said):
        raise UserError(
            f'{place}: expected {{"caption": "...", "tags": "..."}}, found '
            f"{shown(entry)}; give the metadata as kohya's scripts write it"
        )
    caption, tags = said
    if not caption:
        return tags or ""
    tags = (tags or "").replace("\n", separator)
    lines = [line for line in caption.split("\n") if line.strip()]
    return "\n".join(line + separator + tags if tags else line for line in lines)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and ("caption" in entry or "tags" in entry)


def _matches(content: Any, pictures: Sequence[str]) -> dict[str, str]:
    """The keys of kohya's metadata that mean a picture, with that picture."""
    if not isinstance(content, dict) or not any(map(_is_entry, content.values())):
        return {}
    ends: dict[tuple[str, ...], set[str]] = {}
    for picture in pictures:
        *folders, name = parts_of(composed(picture))
        for last in {name, exact_stem(name)}:
            for start in range(len(folders) + 1):
                ends.setdefault((*folders[start:], last), set()).add(picture)
    longest = max((len(end) for end in ends), default=0)
    found = {}
    for key in content:
        parts = tuple(parts_of(composed(key)))
        for length in range(min(longest, len(parts)), 0, -1):
            meant = ends.get(parts[-length:], set())
            if len(meant) == 1:
                (found[key],) = meant
            if meant:
                break
    return found


def _folders(folder: Path, pictures: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The folders of pictures, as paths inside `folder`, and what is in each."""
    inside = dict.fromkeys(map(_folder_of, pictures))
    return [
        (each, [n for n in names_in(folder / each) if not n.startswith(".")])
        for each in inside
    ]


def _folder_of(picture: str) -> str:
    return picture.rpartition("/")[0]
