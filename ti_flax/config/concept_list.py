"""The list that `concepts` names: of each concept its name and the keys it sets."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ti_flax.config import folder_names
from ti_flax.config.many_keys import MOST_CONCEPTS
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import names_in, open_regular

_SHAPE = "lines of name: {key: value, ...}, or a list of key: value with a name"
_ADVICE = f"give a YAML file of {_SHAPE}, or a folder of folders"
_MOST_BYTES = 2**25
# libyaml's is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What the constructors of PyYAML raise for a value that is not of its tag.
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class Listed(NamedTuple):
    """A concept as it is listed, or why it cannot be trained."""

    name: str
    keys: dict[Any, Any]
    problem: str | None = None


def read(path: Path) -> list[Listed]:
    """The concepts of a file in its order, of a folder in that of its names.

    Raises:
        UserError: it is no such list, cannot be read or is too long, in one line.
    """
    place = f"concepts {one_line(str(path))}"
    if path.is_dir():
        listed = list(_folders(place, path))
    else:
        listed = list(_entries(place, _content(place, path)))
    return list(_of_one_name_each(listed))


def check_number(place: str, number: int) -> None:
    """Raises `UserError` for more concepts than a run may have."""
    if number > MOST_CONCEPTS:
        raise UserError(
            f"{place}: expected at most {MOST_CONCEPTS} concepts in a run, found "
            f"{number}; divide them into several"
        )


def _folders(place: str, path: Path) -> Iterator[Listed]:
    """A concept for each folder that is not hidden."""
    names = [name for name in names_in(path) if not name.startswith(".")]
    folders = [name for name in names if (path / name).is_dir()]
    if not folders:
        raise UserError(
            f"{place}: expected a folder of pictures for each concept, found none; "
            "put the pictures of each into a folder of its own"
        )
    check_number(place, len(folders))
    for folder in folders:
        name = folder_names.made(folder, spaces=True)
        word = f"<{'-'.join(folder.lower().split())}>"
        own = {"train_data_dir": os.fspath(path / folder), "placeholder_token": word}
        yield Listed(name, own)


def _content(place: str, path: Path) -> Any:
    try:
        with open_regular(path, _MOST_BYTES, _ADVICE) as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig")
        node = yaml.compose(text, _LOADER)
        _check_keys(place, node)
        # Of an empty file there is no node.
        return node and yaml.constructor.SafeConstructor().construct_document(node)
    except FileNotFoundError as error:
        raise UserError(f"{place}: no such file or folder; {_ADVICE}") from error
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from error
    except _NOT_YAML as error:
        raise UserError(f"{place}: not valid YAML: {one_line(error)}") from error


def _check_keys(place: str, top: yaml.Node | None) -> None:
    """Raises `UserError` for a doubled key, and for keys merged from elsewhere."""
    waiting, seen = [] if top is None else [top], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        names = set()
        for key, value in node.value:
            waiting += [key, value]
            at = f"{place}, line {key.start_mark.line + 1}"
            # Merged ones can be more than any memory holds.
            if key.tag == "tag:yaml.org,2002:merge":
                raise UserError(
                    f"{at}: expected the keys of a concept, found <<; set those that "
                    "are the same for all beside concepts"
                )
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    raise UserError(
                        f"{at}: {shown(key.value)} is given twice; rename or remove one"
                    )
                names.add(key.value)


def _entries(place: str, content: Any) -> Iterator[Listed]:
    """The concepts of a file's content."""
    if not isinstance(content, dict | list) or not content:
        raise UserError(f"{place}: expected {_SHAPE}, found {shown(content)}")
    check_number(place, len(content))
    if isinstance(content, list):
        if not any(isinstance(entry, dict) for entry in content):
            raise UserError(f"{place}: expected {_SHAPE}, found {shown(content)}")
        yield from (_entry(number, keys) for number, keys in enumerate(content, 1))
        return
    if not any(isinstance(keys, dict) for keys in content.values()):
        raise UserError(
            f"{place}: expected {_SHAPE}, found {shown(content)}; the keys of a "
            "single run are given as --config FILE"
        )
    yield from (_named(name, keys) for name, keys in content.items())


def _entry(number: int, keys: Any) -> Listed:
    """The concept of an entry of a list, whose name is one of its keys."""
    if not isinstance(keys, dict):
        return _named(f"number {number}", keys)
    if keys.get("name") is not None:
        return _named(keys["name"], {key: keys[key] for key in keys if key != "name"})
    word = keys.get("placeholder_token")
    if not isinstance(word, str) or not word:
        return Listed(
            f"number {number}",
            keys,
            "expected a name or a placeholder_token, found neither; add one",
        )
    return _named(folder_names.made(word), keys)


def _named(name: Any, keys: Any) -> Listed:
    if not isinstance(keys, dict):
        problem = f"expected {{key: value, ...}}, found {shown(keys)}"
        return Listed(_told(name), {}, f"{problem}; write each key with its value")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        problem = f"expected a text as its name, found {shown(name)}; put it in quotes"
        return Listed(_told(name), keys, problem)
    if not folder_names.is_name(str(name)):
        problem = (
            "expected a name that is a folder's on every system, found "
            f"{shown(name)}; use up to {folder_names.MOST_LETTERS} letters, digits, "
            ". _ - and spaces inside"
        )
        return Listed(_told(name), keys, problem)
    return Listed(str(name), keys)


def _told(name: Any) -> str:
    return shown(name) if not isinstance(name, str) else one_line(name)[:80]


def _of_one_name_each(listed: list[Listed]) -> Iterator[Listed]:
    """All of them; one whose name an earlier one has is bad."""
    first: dict[str, str] = {}
    for each in listed:
        earlier = first.get(folder_names.folded(each.name))
        if each.problem is None and earlier is not None:
            yield each._replace(
                problem="expected a name of its own, found that of another concept "
                f"({earlier}), which is the same folder on some systems; rename one"
            )
            continue
        first.setdefault(folder_names.folded(each.name), each.name)
        yield each
