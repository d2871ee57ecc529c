"""The file that `dataset_config` names: known options of the right types."""

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.config.dataset_options import DATASETS, GENERAL, OPTIONS, SUBSETS
from ti_flax.runtime import arguments
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import open_regular

ADVICE = "give the file that sd-scripts reads with --dataset_config"
_MOST_BYTES = 2**20


class FileSubset(NamedTuple):
    """One of the file's: the number of its dataset, and every option that it has."""

    dataset: int
    given: dict[str, Any]

    def value(self, name: str) -> Any:
        """What the file says, or what its silence means to sd-scripts."""
        return self.given.get(name, OPTIONS[name].default)

    @property
    def folder(self) -> str:
        return os.path.normpath(os.path.expanduser(self.given["image_dir"]))


def read_subsets(path: Path, place: str) -> list[FileSubset]:
    """Its subsets, each with the options of [general] and of its dataset.

    Raises:
        UserError: it cannot be read, or has an unknown option or one of another type;
            the line begins with `place`.
    """
    return list(_subsets(place, _content(path, place)))


def _content(path: Path, place: str) -> dict[str, Any]:
    is_json = path.suffix.lower() == ".json"  # sd-scripts reads this as well
    try:
        with open_regular(path, _MOST_BYTES, ADVICE) as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig")
        content = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise UserError(f"{place}: not valid {kind}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: expected a table, found {shown(content)}; {ADVICE}")
    for name in content:
        if name not in ("general", "datasets"):
            hint = arguments.nearest(
                name, ("general", "datasets"), f"expected {GENERAL} and {DATASETS}"
            )
            raise UserError(f"{place}: unknown table {shown(name)}; {hint}")
    return content


def _subsets(place: str, content: dict[str, Any]) -> Iterator[FileSubset]:
    general = _checked(place, GENERAL, content.get("general", {}))
    for number, dataset in enumerate(_tables(place, content, "datasets"), 1):
        at = f"{place}, {DATASETS} {number}"
        common = {k: v for k, v in dataset.items() if k != "subsets"}
        common = general | _checked(at, DATASETS, common)
        for index, subset in enumerate(_tables(at, dataset, "subsets"), 1):
            here = f"{at}, subset {index}"
            own = common | _checked(here, SUBSETS, subset)
            if "image_dir" not in own:
                raise UserError(
                    f"{here}: expected image_dir, found none; name the folder of its "
                    "pictures"
                )
            yield FileSubset(number, own)


def _tables(place: str, table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = table.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError(
            f"{place}: expected {name} as a list of tables, found {shown(tables)}; "
            f"write {DATASETS} and {SUBSETS}"
        )
    return tables


def _checked(place: str, title: str, table: Any) -> dict[str, Any]:
    """The options of one table, of known names and right types."""
    if not isinstance(table, dict):
        raise UserError(f"{place}: expected {title} as a table, found {shown(table)}")
    for name, value in table.items():
        option = OPTIONS.get(name)
        if option is None:
            hint = arguments.nearest(name, OPTIONS, "docs/data.md says what is read")
            raise UserError(f"{place}: unknown option {shown(name)}; {hint}")
        if title not in option.tables:
            raise UserError(
                f"{place}: {name} is no option of {title}; move it to "
                f"{' or '.join(option.tables)}"
            )
        if not option.kind.holds(value):
            raise UserError(
                f"{place}: {name}: expected {option.kind.words}, found {shown(value)}"
            )
    if isinstance(table.get("resolution"), list):
        return table | {"resolution": _side(place, *table["resolution"])}
    return table


def _side(place: str, width: int, height: int) -> int:
    if width != height:
        raise UserError(
            f"{place}: resolution: expected a square, found [{shown(width)}, "
            f"{shown(height)}]; give one side, and enable_bucket = true for tall and "
            "wide pictures"
        )
    return width
