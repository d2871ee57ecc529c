"""Files of strangers: regular ones of bounded length, and the JSON in them."""

import contextlib
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ti_flax.runtime.errors import UserError, one_line, shown

# A tokenizer's vocabulary is the longest: CLIP's has 1 MB, with its merges 4.
MAX_JSON_BYTES = 8 * 2**20
# An index of weights has two levels, a tokenizer's file six.
_MAX_DEPTH = 32
_AS_PUBLISHED = "give a model as it was published"
_KINDS = {
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
# A pipe without a writer is opened at once, and then seen to be one.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def open_regular(
    path: Path, most: int | None = None, advice: str = _AS_PUBLISHED
) -> Iterator[io.BufferedReader]:
    """A regular file, after links, of at most `most` bytes, opened to be read.

    `advice` ends the line where it is of another kind or too long.

    Raises:
        FileNotFoundError: there is none; what to do then, the caller knows.
        UserError: it is something else, too long or cannot be opened.
    """
    try:
        # Some devices act on being opened.
        _check_kind(path, os.stat(path), advice)
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened ({_reason(error)})") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _check_kind(path, status, advice)
        if most is not None and status.st_size > most:
            raise UserError(
                f"{path}: has {status.st_size} bytes, expected at most {most}; {advice}"
            )
        yield file


def sha256(path: Path) -> bytes:
    """The check sum of a regular file. Raises as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """The JSON object in a file; `missing` ends the line where there is no such file.

    Raises:
        UserError: it is missing, no regular file, too long, damaged or no object.
    """
    try:
        with open_regular(path, MAX_JSON_BYTES) as file:
            # What a file of /proc holds is longer than it says.
            text = file.read(MAX_JSON_BYTES + 1)
        content = json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {missing}") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable JSON ({_reason(error)}); download it again"
        ) from error
    if _is_deep(content):
        raise _too_deep(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a JSON object, found {shown(content)}; give a model as "
            "it was published"
        )
    return content


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing where there is no folder.

    Raises:
        UserError: it may not be read.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read ({_reason(error)})") from error


def _too_deep(path: Path) -> UserError:
    return UserError(
        f"{path}: has more than {_MAX_DEPTH} levels of lists and objects; give a model "
        "as it was published"
    )


def _check_kind(path: Path, status: os.stat_result, advice: str) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise UserError(
            f"{path}: expected a file, found {_KINDS.get(kind, 'something else')}; "
            f"{advice}"
        )


def _reason(error: Exception) -> str:
    """Without the path, which stands before it."""
    strerror = getattr(error, "strerror", None)
    return one_line(strerror or error)


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)
