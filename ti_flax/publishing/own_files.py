"""Whether a file of a concept's folder may be uploaded: it is what its name says.

A folder may come from a stranger, with links to this machine's own files in it.
"""

import stat
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ti_flax.formats import checks, containers, registry
from ti_flax.runtime.errors import UserError

# A model card with its facts has 2 kB.
_MAX_TEXT_BYTES = 2**20
_MAX_PICTURE_BYTES = 2**26
_KINDS = {".safetensors": "safetensors", ".bin": "torch"}


def check(folder: Path, path: Path) -> None:
    """Raises `UserError` unless `path` is such a file, and lies in `folder` itself."""
    inside = path.relative_to(folder)
    itself = path.resolve() == folder.resolve() / inside
    if not itself or not stat.S_ISREG(path.lstat().st_mode):
        raise UserError(
            f"{path} is a link or no file: only a folder's own files are uploaded; put "
            "the file itself there, or remove it"
        )
    fault = _CHECKS[path.suffix](path)
    if fault:
        raise UserError(f"{path} is not uploaded: it is {fault}; replace or remove it")


def _jpeg_fault(path: Path) -> str:
    if path.stat().st_size > _MAX_PICTURE_BYTES:
        return f"longer than {_MAX_PICTURE_BYTES} bytes"
    try:
        with warnings.catch_warnings():
            # Of pictures that are small as files and huge in memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["JPEG"]) as picture:
                picture.load()
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return "no sound JPEG"
    return ""


def _embedding_fault(path: Path) -> str:
    # Says itself, in a line, what no format knows.
    registry.read(path)
    kind = containers.read(path).kind
    return "" if kind == _KINDS[path.suffix] else f"a {kind} file of another name"


def _text_fault(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        return f"longer than {_MAX_TEXT_BYTES} bytes"
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError:
        return "no text"
    return "no text" if "\0" in text else ""


def _word_fault(path: Path) -> str:
    """The placeholder token, or the kind of concept: a single word or few."""
    fault = _text_fault(path)
    if not fault:
        checks.checked_token(path, path.read_text(encoding="utf-8"))
    return fault


_CHECKS: dict[str, Callable[[Path], str]] = {
    ".jpeg": _jpeg_fault,
    ".safetensors": _embedding_fault,
    ".bin": _embedding_fault,
    ".md": _text_fault,
    ".txt": _word_fault,
}
