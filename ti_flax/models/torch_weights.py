"""The tensors of a .bin or .ckpt of torch.save, mapped into memory and not read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ti_flax.models.tensors import Tensor
from ti_flax.pickles import mapped_zip
from ti_flax.runtime.errors import UserError, shown


def read(file: Path) -> Iterator[Tensor]:
    """Every tensor of a file.

    Raises:
        UserError: it is no file of torch.save, damaged, or holds no tensors by name.
    """
    yield from tensors_in(file, load(file))


def tensors_in(file: Path, content: dict[Any, Any]) -> Iterator[Tensor]:
    """Those in what `load` gave, as `state_dict` beside other things or by themselves.

    Raises `UserError` where it holds no tensors by name.
    """
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, dict):
        raise UserError(
            f"{file}: expected tensors by name, found a state_dict that is "
            f"{shown(tensors)}; get the weights as .safetensors"
        )
    for key, value in tensors.items():
        if isinstance(value, np.ndarray):
            yield Tensor(str(key), value.shape, value.dtype, lambda value=value: value)


def load(file: Path) -> dict[Any, Any]:
    """What a file holds by name: tensors as arrays, numbers, texts.

    Raises:
        UserError: it is no file of torch.save, damaged, or holds something else.
    """
    try:
        content = mapped_zip.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; download the model again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file}: expected tensors by name, found a {type(content).__name__}; get "
            "the weights as .safetensors"
        )
    return content
