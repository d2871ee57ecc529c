"""AUTOMATIC1111's pictures that carry an embedding in a text chunk.

The chunk `sd-ti-embedding` is base64 of JSON, in which a tensor is
`{"TORCHTENSOR": nested lists}`. AUTOMATIC1111 also hides the same bytes in strips left
and right of the picture, for sites that drop chunks; those are neither written nor
read: AUTOMATIC1111 itself takes the chunk where there is one.
"""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ti_flax.pickles.refused import SIGNS_OF_DAMAGE
from ti_flax.runtime.errors import UserError

MAGIC = b"\x89PNG\r\n\x1a\n"
_KEYWORD = "sd-ti-embedding"
_TENSOR = "TORCHTENSOR"
_SIDE = 512
# 225 rows of SD 2.x as text have some 5 MB, and a picture of 16 MB 2,000 chunks.
_MAX_LETTERS = 8 * 2**20
_MAX_CHUNKS = 2**14
# A row is a list, and JSON's parser makes an object of each.
_MAX_LISTS = 2**12


def save(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` into a plain picture that shows its name."""
    text = json.dumps(value, default=lambda tensor: {_TENSOR: tensor.tolist()})
    info = PngImagePlugin.PngInfo()
    info.add_text(_KEYWORD, base64.b64encode(text.encode()).decode())
    picture = Image.new("RGB", (_SIDE, _SIDE), (38, 38, 46))
    ImageDraw.Draw(picture).text(
        (_SIDE // 2, _SIDE // 2),
        value["name"],
        (240, 240, 240),
        ImageFont.load_default(size=40),
        anchor="mm",
    )
    picture.save(path, "PNG", pnginfo=info)


def load(path: Path) -> object:
    """The content of the chunk, tensors as float64 arrays; no pixel is decoded."""
    try:
        text = _chunk(path.read_bytes())
        if text is None:
            raise UserError(
                f"{path} is a picture without an embedding: expected the text chunk "
                f"{_KEYWORD}, which sites drop; get the file as it was made"
            )
        if len(text) > _MAX_LETTERS:
            raise UserError(
                f"{path} is no embedding: its text chunk has {len(text)} letters, "
                f"expected at most {_MAX_LETTERS}"
            )
        content = base64.b64decode(text, validate=True)
        lists = content.count(b"[") + content.count(b"{")
        if lists > _MAX_LISTS:
            raise UserError(
                f"{path} is no embedding: its text chunk holds {lists} lists, "
                f"expected at most {_MAX_LISTS}"
            )
        return json.loads(content, object_hook=_tensor)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except SIGNS_OF_DAMAGE as error:
        raise UserError(
            f"{path} is damaged: its embedding cannot be read; get it again"
        ) from error


def _chunk(data: bytes) -> bytes | None:
    """The text of the chunk; a PNG is its signature and then chunks (RFC 2083)."""
    position = len(MAGIC)
    for _ in range(_MAX_CHUNKS):
        if position >= len(data):
            return None
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        keyword, _, text = body.partition(b"\0")
        if kind == b"tEXt" and keyword == _KEYWORD.encode():
            (check,) = struct.unpack_from(">I", data, position + 8 + length)
            if zlib.crc32(kind + body) != check:
                raise ValueError("a chunk that is not what was written")
            return text
        position += 12 + length
    raise ValueError("more chunks than a picture has")


def _tensor(value: dict[str, Any]) -> object:
    if _TENSOR not in value:
        return value
    rows = value[_TENSOR]
    # A tensor of tensors would be copied once for each of its levels.
    if type(rows) is not list or any(
        type(row) not in (list, float, int) for row in rows
    ):
        raise ValueError("a tensor that is not of lists of numbers")
    return np.array(rows, np.float64)
