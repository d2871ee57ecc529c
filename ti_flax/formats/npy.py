"""The .npy of diffusers' Flax script: numpy's own file around a pickled dictionary.

`np.load` opens it only with `allow_pickle=True`, which executes what the pickle says.
Here `pickle_machine` runs it, which executes nothing.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ti_flax import pickle_machine
from ti_flax.errors import Refused, UserError
from ti_flax.formats.embedding import shown
from ti_flax.pickle_machine import BASE_INSTRUCTIONS, Instruction, Machine

MAGIC = b"\x93NUMPY"

_NUMBERS = {"f2": np.float16, "f4": np.float32, "f8": np.float64}


def save(path: Path, value: dict[str, np.ndarray]) -> None:
    """Writes what `np.save(path, value)` writes."""
    with open(path, "wb") as file:  # given a path, numpy appends its own suffix
        np.save(file, np.array(value, object), allow_pickle=True)


def load(path: Path) -> object:
    """What was saved, its arrays as numpy's; `UserError` when it is no dictionary."""
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            if b"'descr': '|O'" not in header or b"'shape': ()" not in header:
                raise Refused(
                    "holds a bare array: expected the dictionary with the token that "
                    "diffusers' Flax script writes"
                )
            program = file.read()
        outer = Machine(_KNOWN, _INSTRUCTIONS, "np.save").run(program)
        return _arrays(outer)
    except Refused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (*pickle_machine.SIGNS_OF_DAMAGE, struct.error) as error:
        raise UserError(
            f"{path} is damaged: its content is not what np.save writes; get it again"
        ) from error


def _read_header(file: BinaryIO) -> bytes:
    """The text that describes the array (numpy.lib.format), of version 1 or later."""
    head = file.read(len(MAGIC) + 2)
    length_format = "<H" if head[-2] == 1 else "<I"
    (length,) = struct.unpack(length_format, file.read(struct.calcsize(length_format)))
    return file.read(length)


class _Dtype(pickle_machine.Stateful):
    """`numpy.dtype(name, False, True)`; its state says the order of the bytes."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name
        self.order = "<"

    def set_state(self, state: Any) -> None:
        self.order = state[1]

    def numbers(self) -> np.dtype:
        # A big-endian array is read as it is, and is little-endian afterwards.
        if self.name not in _NUMBERS or self.order not in ("<", ">"):
            raise Refused(f"holds numbers of type {shown(self.name)}: expected floats")
        return np.dtype(_NUMBERS[self.name]).newbyteorder(self.order)


class _Array(pickle_machine.Stateful):
    """An array whose state has not come yet, and then its value."""

    value: object = None

    def set_state(self, state: Any) -> None:
        _version, shape, dtype, column_major, data = state
        if dtype.name == "O8":
            ((self.value,), ()) = data, shape
            return
        numbers = np.frombuffer(data, dtype.numbers())
        if numbers.size != math.prod(shape):
            raise ValueError("a shape that is not the data's")
        array = numbers.reshape(shape, order="F" if column_major else "C")
        self.value = array.astype(array.dtype.newbyteorder("<"))


class _ArrayType:
    """Stands for the class numpy.ndarray, the first argument of `_reconstruct`."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the pickle protocol of Python 2."""
    if encoding != "latin1":
        raise ValueError("an unknown way to write bytes")
    return text.encode("latin1")


def _arrays(outer: object) -> object:
    """The dictionary inside the outermost array, with arrays for their stand-ins."""
    content = outer.value if isinstance(outer, _Array) else None
    if not isinstance(content, dict):
        raise ValueError("no dictionary")
    return {
        key: item.value if isinstance(item, _Array) else item
        for key, item in content.items()
    }


_KNOWN: dict[str, object] = {
    "numpy ndarray": _ArrayType,
    "numpy dtype": _Dtype,
    "_codecs encode": _encode,
    # numpy moved it in version 2.
    "numpy.core.multiarray _reconstruct": _reconstruct,
    "numpy._core.multiarray _reconstruct": _reconstruct,
}


def _find(machine: Machine, _: None) -> None:
    module, name = machine.pop(2)
    machine.find(f"{module} {name}")


# Protocols 3 and 4, which numpy has used, have bytes and shorter forms.
_INSTRUCTIONS: dict[str, Instruction] = {
    **BASE_INSTRUCTIONS,
    **dict.fromkeys(
        ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "SHORT_BINUNICODE"), Machine.push
    ),
    "FRAME": lambda machine, length: None,
    "MEMOIZE": Machine.memoize,
    "STACK_GLOBAL": _find,
}
