"""Text out of files of captions: its encoding, its lines, the JSON in it."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from ti_flax.runtime.errors import UserError, one_line
from ti_flax.runtime.regular_files import open_regular

_ADVICE = "write a caption into it, or set caption_source to none"
# White space is text, as is what lies above; the rest is what binary files hold.
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def read_text(path: Path, most: int) -> str:
    """A file of text: UTF-8, or what its byte order mark says; its lines end in LF.

    Raises:
        UserError: it is no regular file, too long, or not text.
    """
    try:
        with open_regular(path, most, _ADVICE) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected text in UTF-8, found other bytes at {error.start}; save "
            "it as UTF-8, or set caption_source to none"
        ) from error
    if _BINARY.search(text):
        raise UserError(
            f"{path}: expected text, found control characters as binary files have "
            "them; write a caption into it, or set caption_source to none"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place}: not readable JSON ({one_line(error)}); mend it, or set "
            "caption_source to none"
        ) from error


def cleaned(place: Path | str, text: str) -> str:
    if _BINARY.search(text):  # JSON may escape them
        raise UserError(
            f"{place}: expected a caption, found control characters in it; remove them"
        )
    lines = (line.strip() for line in re.split(r"[\r\n]+", composed(text)))
    return "\n".join(line for line in lines if line)


def parts_of(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".")]


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
