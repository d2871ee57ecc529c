"""Safetensors written one tensor at a time, whatever the numbers' type."""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ti_flax.models.safetensors_weights import DTYPES
from ti_flax.models.tensors import Tensor
from ti_flax.runtime import atomic

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The numbers begin at a multiple of it, as safetensors asks for.
_ALIGNMENT = 8


def write(file: Path, tensors: Iterable[Tensor]) -> None:
    """Writes the tensors under their keys; float8 as float16, which holds it exactly.

    PyTorch computes nothing in float8. Raises `OSError` where the system refuses.
    """
    tensors = [_computable(tensor) for tensor in tensors]
    # transformers refuses a file that does not say which framework wrote it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[tensor.key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic.atomic_path(file) as temporary, open(temporary, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            numbers = np.ascontiguousarray(tensor.read())
            opened.write(numbers.reshape(-1).view(np.uint8).data)


def _computable(tensor: Tensor) -> Tensor:
    if tensor.dtype.itemsize > 1 or tensor.dtype.kind in "biu":
        return tensor
    half = np.dtype(np.float16)
    return tensor._replace(dtype=half, read=lambda: tensor.read().astype(half))
