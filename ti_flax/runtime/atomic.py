"""Files appear whole or not at all."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ti_flax.runtime.errors import UserError

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")
# Hosts that share a folder have processes of the same number: in containers all are 1.
_SALT = secrets.randbelow(10**9)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it when the block succeeds.

    A reader never sees half a file, and a failed write leaves the old one as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_SALT:09}.tmp")
    try:
        yield temporary
        # Else the new name may reach the disk before the content does. Windows syncs
        # only what is open for writing.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        # Without a write there is no file, and a failing disk must not hide the reason.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Writes a JSON file whole, and makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def is_leftover(path: Path) -> bool:
    """Whether `atomic_path` left this when its process was killed."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes them from `folder` and the folders in it."""
    for path in filter(is_leftover, folder.rglob(".*.tmp")):
        path.unlink()


@contextlib.contextmanager
def one_line_errors(what: str, advice: str) -> Iterator[None]:
    """Turns what the system refuses (a full disk, a read-only folder) into one line.

    Raises:
        UserError: `what` could not be written, why, and `advice`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot write {what}{place}: {reason}; {advice}") from error
