"""Makes keys of a run out of sd-scripts' `dataset.toml` (`--dataset_config`).

`dataset_options` lists its options, `dataset_file` reads it. A run has one value of
each key: subsets may differ in their folders and in how often these count.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ti_flax.config import dataset_options as options
from ti_flax.config.dataset_file import ADVICE, FileSubset, read_subsets
from ti_flax.config.dataset_options import DATASETS, OPTIONS, SUBSETS
from ti_flax.config.subsets import Subset, text_of
from ti_flax.runtime.errors import UserError, listed, one_line, shown

KEY = "dataset_config"
ABOUT = "kohya's dataset.toml, whose options become keys"

_log = logging.getLogger(__name__)


def under(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the file that `given` names as dataset_config, and `given` over them.

    Folders that `given` names take the place of the file's, with how they count.

    Raises:
        UserError: see `read`; or `given` does not name a file.
    """
    keys = {key: value for key, value in given.items() if key != KEY}
    path = given.get(KEY)
    if path is None or str(path).lower() in ("none", "null"):
        return keys
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(f"{KEY}: expected a path, found {shown(path)}; {ADVICE}")
    read_keys = read(Path(os.path.expanduser(path)))
    if "train_data_dir" in keys:
        read_keys.pop("subsets", None)
        _log.warning(
            "%s: its image_dir and num_repeats are not read, as train_data_dir is "
            "given beside it",
            KEY,
        )
    return read_keys | keys


def read(path: Path) -> dict[str, Any]:
    """The keys of a run that the file gives, warning of what has no meaning here.

    Raises:
        UserError: it cannot be read, has an unknown option or one of another type, or
            asks for what a run cannot do, in one line.
    """
    place = f"{KEY} {one_line(str(path))}"
    subsets = read_subsets(path, place)
    _tell(subsets)
    kept = _without_left_out(subsets)
    if not kept:
        raise UserError(
            f"{place}: expected {DATASETS} with a {SUBSETS} of pictures to learn from, "
            "found none; add one with an image_dir"
        )
    inside, keys = _folders(place, kept)
    return {
        **_same(place, kept),
        **keys,
        **_masks(place, kept, inside),
        **_captions(place, kept, keys["train_data_dir"]),
    }


def _tell(subsets: Sequence[FileSubset]) -> None:
    """A line for each option that is given and does nothing here."""
    for name, (option, reason) in options.NO_MEANING.items():
        values = [s.given[name] for s in subsets if name in s.given]
        if any(value != option.default for value in values):
            _log.warning("%s: %s is ignored: %s", KEY, name, reason)


def _without_left_out(subsets: Sequence[FileSubset]) -> list[FileSubset]:
    regular = [s.folder for s in subsets if s.value("is_reg")]
    if regular:
        _log.warning(
            "%s: is_reg pictures (%s) are left out: their captions lack the new word, "
            "so the gradient to its vectors is zero and nothing is learned from them",
            KEY,
            listed(regular),
        )
    kept, seen = [], set()
    for subset in subsets:
        if subset.value("is_reg"):
            continue
        key = subset.dataset, subset.folder, subset.value("metadata_file")
        reason = None
        if subset.value("num_repeats") < 1:
            reason = f"num_repeats is {subset.value('num_repeats')}"
        elif key in seen:
            reason = "its dataset has it already"
        if reason:
            _log.warning("%s: %s is left out: %s", KEY, one_line(subset.folder), reason)
            continue
        seen.add(key)
        kept.append(subset)
    return kept


def _agreed(
    place: str,
    subsets: Sequence[FileSubset],
    name: str,
    advice: str = "make them equal, or train on one alone",
) -> Any:
    """The value of an option in all subsets."""
    first, *others = subsets
    value = first.value(name)
    for other in others:
        if other.value(name) != value:
            found = [
                shown(s.given[name]) if name in s.given else _silent(name)
                for s in (first, other)
            ]
            raise UserError(
                f"{place}: {name}: expected one value for all pictures of a run, found "
                f"{found[0]} for {one_line(first.folder)} and {found[1]} for "
                f"{one_line(other.folder)}; {advice}"
            )
    return value


def _silent(name: str) -> str:
    default = OPTIONS[name].default
    return "none" if default in (None, "") else f"{default!r} (not given)"


def _same(place: str, subsets: Sequence[FileSubset]) -> dict[str, Any]:
    """The keys of the options that are given; those that are not, stay ours."""
    keys: dict[str, Any] = {}
    for name in options.SAME:
        value = _agreed(place, subsets, name)
        if any(name in subset.given for subset in subsets):
            keys[options.RENAMED.get(name, name)] = value
    for name in options.EMPTY_IS_NONE:
        if keys.get(name) == "":
            del keys[name]
    if keys.get("alpha_mask"):
        keys["masked_loss"] = True
    return keys


def _folders(
    place: str, subsets: Sequence[FileSubset]
) -> tuple[list[str], dict[str, Any]]:
    """`train_data_dir`, the deepest folder above all pictures, and `subsets` in it.

    First the path of each subset from there.
    """
    folders = [subset.folder for subset in subsets]
    if any(os.path.isabs(folder) or folder.startswith("..") for folder in folders):
        folders = [os.path.abspath(folder) for folder in folders]
    try:
        parent = os.path.commonpath(folders) or "."
    except ValueError as error:  # drives of Windows
        raise UserError(
            f"{place}: expected folders of pictures on one drive, found "
            f"{listed(folders)}; copy them below one folder"
        ) from error
    inside = [PurePath(os.path.relpath(each, parent)).as_posix() for each in folders]
    counts: dict[str, int] = {}
    for name, subset in zip(inside, subsets, strict=True):
        counts[name] = counts.get(name, 0) + subset.value("num_repeats")
    keys: dict[str, Any] = {"train_data_dir": parent}
    if len(counts) > 1:
        keys["subsets"] = [text_of(Subset(*each)) for each in counts.items()]
    return inside, keys


def _masks(
    place: str, subsets: Sequence[FileSubset], inside: Sequence[str]
) -> dict[str, Any]:
    """One folder of masks, or one with the sub-folders of the pictures."""
    given = [subset.given.get("conditioning_data_dir") for subset in subsets]
    if not any(given):
        return {}
    folders = [each and os.path.normpath(os.path.expanduser(each)) for each in given]
    above = {
        _before(PurePath(folder or ""), PurePath(name))
        for folder, name in zip(folders, inside, strict=True)
    }
    if len(set(folders)) == 1:
        masks = folders[0]
    elif all(folders) and len(above) == 1 and None not in above:
        masks = str(above.pop())
    else:
        raise UserError(
            f"{place}: conditioning_data_dir: expected one folder, or those of one "
            "with the sub-folders of the pictures, found "
            f"{listed(dict.fromkeys(each or 'none' for each in folders))}; put the "
            "masks into one folder, each with the name of its picture"
        )
    return {"masked_loss": True, "conditioning_data_dir": masks}


def _before(folder: PurePath, end: PurePath) -> PurePath | None:
    """`folder` without the names that it ends in; None if it does not."""
    kept = len(folder.parts) - len(end.parts)
    return PurePath(*folder.parts[:kept]) if folder.parts[kept:] == end.parts else None


def _captions(place: str, subsets: Sequence[FileSubset], folder: str) -> dict[str, Any]:
    """`caption_source`: kohya's metadata, or files of an ending beside the pictures."""
    merge = "merge them into one file in the folder above the pictures"
    metadata = _agreed(place, subsets, "metadata_file", merge)
    if metadata is not None:
        path = Path(os.path.expanduser(metadata))
        if path.suffix.lower() != ".json" or os.path.realpath(
            path.parent
        ) != os.path.realpath(folder):
            raise UserError(
                f"{place}: metadata_file: expected a .json file in "
                f"{one_line(folder)}, the folder above all pictures, found "
                f"{one_line(metadata)}; put it there, the paths in it may stay"
            )
        return {"caption_source": "json"}
    ending = _agreed(place, subsets, "caption_extension")
    if not any("caption_extension" in subset.given for subset in subsets):
        return {}
    if ending not in options.SOURCES:
        raise UserError(
            f"{place}: caption_extension: expected .txt or .caption, found "
            f"{shown(ending)}; rename the captions"
        )
    return {"caption_source": options.SOURCES[ending]}
