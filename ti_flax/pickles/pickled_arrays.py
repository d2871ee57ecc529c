"""Stand-ins for what the pickle of a numpy array names, and calls with its data."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ti_flax.pickles.refused import Refused
from ti_flax.pickles.sizes import is_shape

_WORK_BYTES = 1024
_MAX_TEXT = 60

# Counts work of the program, see `pickle_machine`.
Spend = Callable[[int], None]


class Function(NamedTuple):
    """What a program may call, and how many arguments that takes."""

    call: Callable[..., object]
    fewest: int
    most: int


_NUMBERS = {"f2": np.float16, "f4": np.float32, "f8": np.float64}


class Dtype:
    """`numpy.dtype(name, False, True)`; its state says the order of the bytes."""

    def __init__(self, name: object, *_: object) -> None:
        if type(name) is not str:
            raise ValueError("a type of numbers whose name is no text")
        self.name = name
        self.order: object = "<"

    def set_state(self, state: object, _: Spend) -> None:
        if type(state) is not tuple or len(state) < 2:
            raise ValueError("a state that is no type's")
        self.order = state[1]

    def numbers(self) -> np.dtype:
        known = type(self.order) is str and self.order in ("<", ">")
        if not known or self.name not in _NUMBERS:
            found = ascii(self.name[:_MAX_TEXT])
            raise Refused(f"holds numbers of type {found}: expected floats")
        return np.dtype(_NUMBERS[self.name]).newbyteorder(self.order)


class Array:
    """A pickled numpy array; its `value` comes by its state."""

    value: object = None

    def __init__(self, *_: object) -> None:
        """The arguments say how an empty array is made, which nobody needs."""

    def set_state(self, state: object, spend: Spend) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("a state that is no array's")
        _version, shape, dtype, column_major, data = state
        if not is_shape(shape) or type(dtype) is not Dtype:
            raise ValueError("an array without a shape and a type")
        if dtype.name == "O8":
            if type(data) is not list or len(data) != 1 or shape:
                raise ValueError("objects that are not a single one")
            [self.value] = data
            return
        numbers = dtype.numbers()
        sound = type(data) is bytes and type(column_major) in (bool, int)
        if not sound or math.prod(shape) * numbers.itemsize != len(data):
            raise ValueError("a shape that is not the data's")
        order = "F" if column_major else "C"
        array = np.frombuffer(data, numbers).reshape(shape, order=order)
        if dtype.order == ">":
            spend(len(data) // _WORK_BYTES)
            array = array.astype(numbers.newbyteorder("<"))
        self.value = array


def numpy_globals(spend: Spend) -> dict[str, object]:
    """What the pickle of an array names, in the protocols 2 to 5."""

    def encode(text: object, encoding: object) -> bytes:
        """How Python 3 writes bytes in the pickle protocol of Python 2."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise ValueError("an unknown way to write bytes")
        spend(len(text) // _WORK_BYTES)
        return text.encode("latin1")

    reconstruct = Function(Array, 3, 3)
    return {
        "_codecs encode": Function(encode, 2, 2),
        "numpy dtype": Function(Dtype, 1, 3),
        # Only ever an argument.
        "numpy ndarray": None,
        # numpy moved it in version 2.
        "numpy.core.multiarray _reconstruct": reconstruct,
        "numpy._core.multiarray _reconstruct": reconstruct,
    }
