"""The standard library's unpickler, restricted: it imports nothing.

A pickle is a program that calls whatever it names. `Unpickler` is `pickle._Unpickler`
(the one in Python, unchanged since 3.0 but for new opcodes) with the opcodes and
globals cut to a list. Its time and memory are bounded: every opcode costs a unit of
work, and so does every item or kilobyte that a call copies. `check_bounds` bounds what
comes of it.
"""

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ti_flax.formats.refused import Refused

# An embedding's pickle has some 50 opcodes a word.
_MAX_WORK = 2**16
_WORK_BYTES = 1024
_MAX_TEXT = 60
_MAX_KEY = 2**32
_MAX_SIZE = 2**40
_MAX_DIMENSIONS = 8

# Of a file's content; AUTOMATIC1111's is three deep.
_MAX_VALUES = 2**16
_MAX_LETTERS = 2**20
_MAX_DEPTH = 16

# What the unpickler, numpy and zipfile raise on bytes that make no sense.
SIGNS_OF_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


class Function(NamedTuple):
    """What a program may call, and how many arguments that takes."""

    call: Callable[..., object]
    fewest: int
    most: int


class _Dispatch(dict[int, Callable[["Unpickler"], None]]):
    """Opcodes and what they do; each look-up is a step of the program."""

    def __init__(self, codes: Mapping[int, Any], unpickler: "Unpickler") -> None:
        super().__init__(codes)
        self._unpickler = unpickler

    def __getitem__(self, code: int) -> Callable[["Unpickler"], None]:
        self._unpickler.spend(1)
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[["Unpickler"], None]:
        if chr(code) not in pickletools.code2op:
            raise ValueError("no opcode of pickle")
        raise Refused(
            f"holds the pickle instruction {pickletools.code2op[chr(code)].name}, "
            f"which {self._unpickler.writer} does not write: get it as .safetensors"
        )


class Unpickler(pickle._Unpickler):
    """Loads a program that may name what is in `known` ("module name"), nothing else.

    `writer` is the function whose files these are, for messages. Raises `Refused` on
    what such a file never holds and on too much work, `SIGNS_OF_DAMAGE` on nonsense.
    """

    def __init__(
        self, program: bytes, known: Mapping[str, object], writer: str
    ) -> None:
        super().__init__(io.BytesIO(program))
        self.writer = writer
        self._length = len(program)
        self._known = {**known, **_numpy_globals(self)}
        self._work = 0
        self.dispatch = _Dispatch(_OPCODES, self)

    def spend(self, work: int) -> None:
        """Counts what a step costs, before it is taken."""
        self._work += work
        if self._work > _MAX_WORK:
            raise Refused(
                f"is no embedding: its pickle of {self._length} bytes takes more than "
                f"{_MAX_WORK} steps"
            )

    def find_class(self, module: str, name: str) -> object:
        asked = f"{module} {name}"
        if asked not in self._known:
            shown = asked.replace(" ", ".")[:_MAX_TEXT]
            raise Refused(
                f"asks for {shown!r}, which no embedding needs; nothing was executed: "
                "get it as .safetensors"
            )
        return self._known[asked]

    def pop(self, count: int) -> list:
        return [self.stack.pop() for _ in range(count)][::-1]

    def load_call(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not Function or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        if not function.fewest <= len(arguments) <= function.most:
            raise ValueError("a call with too few or too many arguments")
        self.append(function.call(*arguments))

    def load_build(self) -> None:
        """Sets attributes; the only ones that matter are a ParameterDict's items."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype | Array):
            target.set_state(state, self)
            return
        if type(target) is not dict or type(state) is not dict:
            raise ValueError("attributes for something that has none")
        parameters = state.get("_parameters", {})
        if type(parameters) is not dict:
            raise ValueError("parameters that are no dictionary")
        self.spend(len(parameters))
        target.update(parameters)

    def extend(self, items: list) -> None:
        """APPEND and APPENDS."""
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("elements for something that is no list")
        target.extend(items)

    def update(self, items: list) -> None:
        """SETITEM and SETITEMS: keys and values in turn."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples takes exponential time, long numbers may all hash
            # to the same.
            if not (type(key) is str or (is_size(key) and key < _MAX_KEY)):
                raise ValueError("a key that is neither text nor a small number")
            target[key] = value


# Bound by their sizes in the file alone: as the standard library has them.
_STANDARD = (
    "PROTO FRAME STOP MARK BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BININT "
    "BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES "
    "SHORT_BINBYTES BINBYTES8 NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL BINPERSID"
)
_OPCODES: dict[int, Callable[[Any], None]] = {
    **{
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _STANDARD.split())
    },
    pickle.APPEND[0]: lambda unpickler: unpickler.extend(unpickler.pop(1)),
    pickle.APPENDS[0]: lambda unpickler: unpickler.extend(unpickler.pop_mark()),
    pickle.SETITEM[0]: lambda unpickler: unpickler.update(unpickler.pop(2)),
    pickle.SETITEMS[0]: lambda unpickler: unpickler.update(unpickler.pop_mark()),
    pickle.REDUCE[0]: Unpickler.load_call,
    pickle.NEWOBJ[0]: Unpickler.load_call,
    pickle.BUILD[0]: Unpickler.load_build,
}


def is_size(number: object) -> bool:
    """Whether this is a whole number that a length, offset or stride may be."""
    return type(number) is int and 0 <= number < _MAX_SIZE


def is_shape(sizes: object) -> bool:
    """Whether this is a tuple of few sizes, whose product is cheap."""
    return (
        type(sizes) is tuple
        and len(sizes) <= _MAX_DIMENSIONS
        and all(map(is_size, sizes))
    )


_NUMBERS = {"f2": np.float16, "f4": np.float32, "f8": np.float64}


class _Dtype:
    """`numpy.dtype(name, False, True)`; its state says the order of the bytes."""

    def __init__(self, name: object, *_: object) -> None:
        if type(name) is not str:
            raise ValueError("a type of numbers whose name is no text")
        self.name = name
        self.order: object = "<"

    def set_state(self, state: object, _: Unpickler) -> None:
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

    def set_state(self, state: object, unpickler: Unpickler) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("a state that is no array's")
        _version, shape, dtype, column_major, data = state
        if not is_shape(shape) or type(dtype) is not _Dtype:
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
            unpickler.spend(len(data) // _WORK_BYTES)
            array = array.astype(numbers.newbyteorder("<"))
        self.value = array


def _numpy_globals(unpickler: Unpickler) -> dict[str, object]:
    """What the pickle of an array names, in the protocols 2 to 5."""

    def encode(text: object, encoding: object) -> bytes:
        """How Python 3 writes bytes in the pickle protocol of Python 2."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise ValueError("an unknown way to write bytes")
        unpickler.spend(len(text) // _WORK_BYTES)
        return text.encode("latin1")

    reconstruct = Function(Array, 3, 3)
    return {
        "_codecs encode": Function(encode, 2, 2),
        "numpy dtype": Function(_Dtype, 1, 3),
        # Only ever an argument.
        "numpy ndarray": None,
        # numpy moved it in version 2.
        "numpy.core.multiarray _reconstruct": reconstruct,
        "numpy._core.multiarray _reconstruct": reconstruct,
    }


def check_bounds(content: object) -> None:
    """Raises `Refused` unless this is a small tree of plain values and arrays.

    A value that is reached twice counts twice: whatever passes is compared, hashed and
    printed in bounded time.
    """
    values, letters = 0, 0
    ahead = [(content, 0)]
    while ahead:
        value, depth = ahead.pop()
        inner: list = []
        if type(value) is dict:
            inner = [*value, *value.values()]
        elif type(value) in (list, tuple):
            inner = value
        elif type(value) in (str, bytes):
            letters += len(value)
        elif type(value) is int:
            letters += value.bit_length() // 3
        elif not (value is None or isinstance(value, bool | float | np.ndarray)):
            raise Refused(f"is damaged: it holds a {type(value).__name__}")
        values += len(inner)
        if values > _MAX_VALUES or letters > _MAX_LETTERS or depth > _MAX_DEPTH:
            raise Refused(
                f"is no embedding: its content has more than {_MAX_VALUES} values, "
                f"{_MAX_LETTERS} letters or {_MAX_DEPTH} levels"
            )
        ahead += [(item, depth + 1) for item in inner]
