"""Reads and writes safetensors: byte-stable metadata, bounded headers."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from ti_flax.formats.checks import DTYPES, shown
from ti_flax.formats.content import Content
from ti_flax.pickles.refused import SIGNS_OF_DAMAGE
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import NOTHING

# 75 vectors for the widest text encoder in use (4,096) have 1.2 MB.
MAX_FILE_BYTES = 16 * 2**20
# Of a LoRA file with bundled embeddings only the header is read; 10,000 tensors make 1.
_MAX_HEADER_BYTES = 8 * 2**20
# safetensors makes an object of every tensor; an embedding has two, and its texts.
_MAX_OWN_HEADER_BYTES = 2**20
BUNDLE_PREFIX = "bundle_emb."


def write_safetensors(path: Path, content: Content) -> None:
    """safetensors' own writer puts the metadata in another order at every call."""
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", **dict(sorted(content.metadata.items()))}
    }
    end = 0
    for name, tensor in content.value.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded, so that the numbers are aligned in memory.
    text += b" " * (-len(text) % 8)
    numbers = [tensor.tobytes() for tensor in content.value.values()]
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(numbers))


def read_safetensors(file: Path) -> Content:
    return _parse_safetensors(file, file.read_bytes())


def _parse_safetensors(file: Path, data: bytes) -> Content:
    length = int.from_bytes(data[:8], "little")
    if _MAX_OWN_HEADER_BYTES < length < len(data):
        raise UserError(
            f"{file} is no embedding: its header has {length} bytes, expected at most "
            f"{_MAX_OWN_HEADER_BYTES}"
        )
    # safetensors.numpy knows no bfloat16, so its dtypes are looked up here.
    try:
        tensors = {
            name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(
                entry["shape"]
            )
            for name, entry in safetensors.deserialize(data)
        }
    except KeyError as error:
        raise UserError(
            f"{file} holds numbers of type {error}: an embedding's are one of "
            f"{', '.join(DTYPES)}"
        ) from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise _damaged(file, error) from error
    # The parser above has found the header sound.
    header = json.loads(data[8 : 8 + length])
    # In the header's order: the parser gives them in any.
    names = [name for name in header if name in tensors]
    return Content(
        "safetensors",
        {name: tensors[name] for name in names},
        header.get("__metadata__") or NOTHING,
    )


def read_bundle(file: Path, size: int) -> Content:
    """The embeddings that a LoRA file of any length bundles; the rest stays unread."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(_MAX_HEADER_BYTES, size):
            raise too_long(file, size)
        try:
            header = json.loads(opened.read(length))
            wanted = [name for name in header if name.startswith(BUNDLE_PREFIX)]
            kept: dict[str, Any] = {"__metadata__": header.get("__metadata__") or {}}
            parts: list[bytes] = []
            end = 0
            for name in wanted:
                begin, stop = header[name]["data_offsets"]
                if not 0 <= begin <= stop <= size - 8 - length:
                    raise ValueError(f"{shown(name)} lies outside the file")
                if end + stop - begin > MAX_FILE_BYTES:
                    raise ValueError(f"{shown(name)} has no embedding's length")
                opened.seek(8 + length + begin)
                parts.append(opened.read(stop - begin))
                offsets = [end, end + stop - begin]
                kept[name] = {**header[name], "data_offsets": offsets}
                end += stop - begin
        except SIGNS_OF_DAMAGE as error:
            raise _damaged(file, error) from error
    if not wanted:
        raise too_long(file, size)
    text = json.dumps(kept).encode()
    data = struct.pack("<Q", len(text)) + text + b"".join(parts)
    return _parse_safetensors(file, data)


def too_long(file: Path, size: int) -> UserError:
    return UserError(
        f"{file} is no embedding: it has {size} bytes, "
        f"expected at most {MAX_FILE_BYTES}"
    )


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is a damaged safetensors file ({shown(error)}): get it again"
    )
