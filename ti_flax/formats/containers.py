"""Files as named tensors: safetensors, torch.save, numpy and PNG, known by their bytes.

What the names mean is for the other modules of this package.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors

from ti_flax.formats import a1111_png, npy, pickle_machine, torch_zip
from ti_flax.formats.checks import DTYPES, NOTHING, shown
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import Refused, UserError

# 75 vectors for the widest text encoder in use (4,096) have 1.2 MB.
MAX_FILE_BYTES = 16 * 2**20
# Of a LoRA file with bundled embeddings only the header is read; 10,000 tensors make 1.
_MAX_HEADER_BYTES = 8 * 2**20
# safetensors makes an object of every tensor; an embedding has two, and its texts.
_MAX_OWN_HEADER_BYTES = 2**20
BUNDLE_PREFIX = "bundle_emb."


Kind = Literal["safetensors", "torch", "npy", "png"]


class Content(NamedTuple):
    """What a file of a kind holds, and the texts that safetensors keeps beside it."""

    kind: Kind
    value: Any
    metadata: Mapping[str, str] = NOTHING


def read(file: Path) -> Content:
    """What a file's container holds, by the first container that knows its bytes.

    Raises `UserError` in one line on what is no such file, or damaged.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist: expected an embedding file or folder")
    size = file.stat().st_size
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if size > MAX_FILE_BYTES and head[8:9] == b"{":
        return _bounded(file, _read_bundle(file, size))
    if size > MAX_FILE_BYTES:
        raise _too_long(file, size)
    for container in _CONTAINERS:
        if container.knows(head):
            return _bounded(file, container.read(file))
    raise UserError(
        f"{file} is no embedding file: expected the bytes of safetensors, of "
        "torch.save (.bin, .pt), of a PNG or of a .npy"
    )


def _bounded(file: Path, content: Content) -> Content:
    """The content, all of which may now be hashed, compared and printed."""
    try:
        pickle_machine.check_bounds(content.value)
        pickle_machine.check_bounds(dict(content.metadata))
    except Refused as refusal:
        raise UserError(f"{file} {refusal}") from None
    return content


def write(path: Path, content: Content) -> None:
    """Writes a file of the content's kind; the same content gives the same bytes."""
    with atomic.atomic_path(path) as temporary:
        match content.kind:
            case "safetensors":
                _write_safetensors(temporary, content)
            case "torch":
                torch_zip.save(temporary, content.value)
            case "png":
                a1111_png.save(temporary, content.value)
            case "npy":
                npy.save(temporary, content.value)


def _write_safetensors(path: Path, content: Content) -> None:
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


def _read_safetensors(file: Path) -> Content:
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


def _read_bundle(file: Path, size: int) -> Content:
    """The embeddings that a LoRA file of any length bundles; the rest stays unread."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(_MAX_HEADER_BYTES, size):
            raise _too_long(file, size)
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
        except (ArithmeticError, AttributeError, LookupError) as error:
            raise _damaged(file, error) from error
        except (RecursionError, TypeError, ValueError) as error:
            raise _damaged(file, error) from error
    if not wanted:
        raise _too_long(file, size)
    text = json.dumps(kept).encode()
    data = struct.pack("<Q", len(text)) + text + b"".join(parts)
    return _parse_safetensors(file, data)


def _too_long(file: Path, size: int) -> UserError:
    return UserError(
        f"{file} is no embedding: it has {size} bytes, "
        f"expected at most {MAX_FILE_BYTES}"
    )


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is a damaged safetensors file ({shown(error)}): get it again"
    )


class _Container(NamedTuple):
    """A way to store named tensors: how it begins, and how it is read."""

    knows: Callable[[bytes], bool]
    read: Callable[[Path], Content]


_CONTAINERS = (
    # Eight bytes with the header's length, then the header, a JSON object.
    _Container(lambda head: head[8:9] == b"{", _read_safetensors),
    # A zip, or the bare pickle of torch before 1.6, which torch_zip explains.
    _Container(
        lambda head: head.startswith((b"PK", b"\x80")),
        lambda file: Content("torch", torch_zip.load(file)),
    ),
    _Container(
        lambda head: head.startswith(npy.MAGIC),
        lambda file: Content("npy", npy.load(file)),
    ),
    _Container(
        lambda head: head.startswith(a1111_png.MAGIC),
        lambda file: Content("png", a1111_png.load(file)),
    ),
)
