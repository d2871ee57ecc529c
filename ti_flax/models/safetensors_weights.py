"""The tensors of a safetensors file, mapped into memory and not read.

A file is the length of its header in eight bytes, the header, which is a JSON object
with an entry a tensor, and the numbers (github.com/huggingface/safetensors). Read here
by the header: numpy knows no bfloat16 and no float8.
"""

import functools
import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ti_flax.models.tensors import Tensor
from ti_flax.pickles.sizes import is_shape
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import open_regular

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
# The largest models have some 10,000 tensors, whose entries are 100 bytes long.
_MAX_HEADER_BYTES = 8 * 2**20
_METADATA = "__metadata__"


def read(file: Path) -> Iterator[Tensor]:
    """Every tensor of a file, in the order of its header.

    Raises:
        UserError: it is no safetensors file, damaged, or has numbers that are not read.
    """
    return read_all(file)[0]


def read_all(file: Path) -> tuple[Iterator[Tensor], dict[str, str]]:
    """The tensors, and what a file says of itself; of other types it is left out.

    Raises `UserError` as `read`.
    """
    header, data = _open(file)
    metadata = header.pop(_METADATA, None)
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    said = {key: text for key, text in pairs if isinstance(text, str)}
    return _tensors(file, header, data), said


def _open(file: Path) -> tuple[dict[str, Any], memoryview]:
    """The header, and all numbers."""
    try:
        with open_regular(file) as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            length = int.from_bytes(data[:8], "little")
            if len(data) < 8 or length > min(_MAX_HEADER_BYTES, len(data) - 8):
                raise ValueError(f"a header of {length} bytes in {len(data)}")
            header = json.loads(data[8 : 8 + length].decode())
            if not isinstance(header, dict):
                raise ValueError("a header that is no JSON object")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; download the model again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from error
    return header, memoryview(data)[8 + length :]


def _tensors(file: Path, header: dict[str, Any], data: memoryview) -> Iterator[Tensor]:
    end = 0
    entries = [(key, *_entry(file, key, entry)) for key, entry in header.items()]
    for key, dtype, shape, begin, stop in sorted(entries, key=lambda entry: entry[3:]):
        # As safetensors' own reader has it: all numbers are somebody's, once.
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise _damaged(file, f"the numbers of {shown(key)} are not where they are")
        end = stop
    if end != len(data):
        raise _damaged(file, f"{len(data)} bytes of numbers where {end} belong")
    for key, dtype, shape, begin, stop in entries:
        view = functools.partial(_view, data[begin:stop], dtype, shape)
        yield Tensor(key, shape, dtype, view)


def _view(data: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape)


def _entry(
    file: Path, key: str, entry: Any
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, begin and end of a tensor's numbers."""
    wanted = entry if isinstance(entry, dict) else {}
    name, shape = wanted.get("dtype"), wanted.get("shape")
    offsets = wanted.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise _damaged(file, f"{shown(key)} is {shown(entry)}")
    if type(name) is not str or name not in DTYPES:
        raise UserError(
            f"{file}: {shown(key)} has numbers of type {shown(name)}, which are not "
            "read; use the model in float32, float16, bfloat16 or float8"
        )
    return DTYPES[name], tuple(shape), *offsets


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and is_shape(tuple(numbers))


def _damaged(file: Path, reason: object) -> UserError:
    return UserError(
        f"{file}: expected a safetensors file, found one that cannot be read "
        f"({one_line(str(reason))}); download it again"
    )
