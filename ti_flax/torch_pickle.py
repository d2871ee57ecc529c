"""The pickle inside a file of torch.save, written and run without torch.

It is of protocol 2. A tensor is a call of `torch._utils._rebuild_tensor_v2` on a
storage that a persistent id names; the bytes of storages lie elsewhere
(torch/serialization.py, `_save`).

A pickle is a program for a stack machine, and Python's own machine lets it call
anything. `loads` is a machine of its own: it knows the instructions torch.save writes,
calls only the functions in `_GLOBALS`, and imports nothing. Its time and memory are
bounded by the length of the program and of the storages.
"""

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}

_MAX_TEXT = 60


class Refused(Exception):
    """Why a file is refused: the rest of the sentence that begins with its path."""


def dumps(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors; tensor number i is storage `str(i)`, contiguous.

    A dtype torch has no storage for is a `KeyError`.
    """
    items = [
        _string(name) + _tensor(str(key), tensor)
        for key, (name, tensor) in enumerate(tensors.items())
    ]
    return (
        pickle.PROTO
        + b"\x02"
        + pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(items)
        + pickle.SETITEMS
        + pickle.STOP
    )


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    storage = _tuple(
        _string("storage"),
        _global("torch", _STORAGES[tensor.dtype]),
        _string(key),
        _string("cpu"),
        _integer(tensor.size),
    )
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, tensor.shape)),
        _tuple(*map(_integer, strides)),
        pickle.NEWFALSE,
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _string(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def loads(program: bytes, read_storage: Callable[[str], bytes]) -> object:
    """The object a pickle makes, tensors as read-only numpy arrays.

    `read_storage` gives the bytes of the storage with a key. Dictionaries (OrderedDict
    and ParameterDict too) come as dict, parameters as their tensor; arrays of one
    storage share its memory, as the tensors did.

    Raises `Refused` when the program wants what no file of tensors needs or reaches
    beyond a storage. On bytes that make no sense it raises what they lead to:
    `ValueError`, `TypeError`, `LookupError`, `AttributeError`, `OverflowError`.
    """
    return _Machine(read_storage).run(program)


class _Storage(NamedTuple):
    """The elements that tensors are views of, one-dimensional and contiguous.

    A type of its own, so that no program passes a tensor for it: a tensor that is a
    view has other bounds than its memory.
    """

    values: np.ndarray


def _is_size(number: object) -> bool:
    return type(number) is int and number >= 0


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *_autograd: object
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a view, so that no shape costs memory."""
    if not all(map(_is_size, (offset, *size, *stride))):
        raise ValueError("a shape that is not of whole numbers")
    values = storage.values
    if 0 in size:
        return values[:0].reshape(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # The second bound forbids expanded tensors (stride 0), small in the file and huge
    # in whatever copies them.
    if last >= values.size or math.prod(size) > values.size:
        raise Refused("is damaged: a tensor's shape reaches beyond its storage")
    strides = [s * values.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(
        values[offset:], size, strides, writeable=False
    )


def _rebuild_parameter(tensor: np.ndarray, *_autograd: object) -> np.ndarray:
    return tensor


def _new_dict() -> dict:
    return {}


def _set(items: list) -> list:
    """A ParameterDict's attributes hold sets, which nobody reads."""
    return items


# All that a file may name. Functions are called, dtypes stand in storages' ids.
_GLOBALS: dict[str, Callable | np.dtype] = {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch.nn.modules.container ParameterDict": _new_dict,
    "collections OrderedDict": _new_dict,
    "__builtin__ set": _set,
    **{f"torch {name}": dtype for name, dtype in _DTYPES.items()},
}


class _Machine:
    """Runs a pickle; pickletools names and explains the instructions."""

    def __init__(self, read_storage: Callable[[str], bytes]) -> None:
        self._read_storage = read_storage
        self._stack: list = []
        self._outer_stacks: list[list] = []
        # A dict, not an array as in the C unpickler, whose length a file may choose.
        self._memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        stream = io.BytesIO(program)
        while (code := stream.read(1)) != pickle.STOP:
            opcode = _OPCODES[code]
            if opcode.name not in _INSTRUCTIONS:
                raise Refused(
                    f"holds the pickle instruction {opcode.name}, which torch.save "
                    "does not write: get it as .safetensors"
                )
            argument = opcode.arg.reader(stream) if opcode.arg else None
            _INSTRUCTIONS[opcode.name](self, argument)
        return self._stack.pop()

    def push(self, value: object) -> None:
        self._stack.append(value)

    def mark(self, _: None) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def pop(self, count: int) -> list:
        return [self._stack.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def extend(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("elements for something that is no list")
        target.extend(items)

    def update(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples takes exponential time, or all of the C stack.
            if not isinstance(key, str | int | float | None):
                raise ValueError("a key that is no plain value")
            target[key] = value

    def find(self, name: str) -> None:
        if name not in _GLOBALS:
            shown = name.replace(" ", ".")[:_MAX_TEXT]
            raise Refused(
                f"asks for {shown!r}, which no embedding needs; nothing was executed: "
                "get it as .safetensors"
            )
        self.push(_GLOBALS[name])

    def call(self, _: None) -> None:
        function, arguments = self.pop(2)
        self.push(function(*arguments))

    def build(self, _: None) -> None:
        """Sets attributes; the only ones that matter are a ParameterDict's items."""
        target, attributes = self.pop(2)
        self.push(target)
        parameters = attributes.get("_parameters", {})
        if not isinstance(target, dict) or not isinstance(parameters, dict):
            raise ValueError("attributes for something that has none")
        target.update(parameters)

    def read_storage(self, _: None) -> None:
        """The storage of a persistent id `("storage", dtype, key, device, length)`."""
        kind, dtype, key, _device, length = self._stack.pop()
        # A key of another type could be a tuple nested so deep that printing it hangs.
        if kind != "storage" or not isinstance(key, str) or not _is_size(length):
            raise ValueError("a persistent id that is not a storage's")
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage without a dtype")
        values = np.frombuffer(self._read_storage(key), dtype, length)
        self.push(_Storage(values))


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_to_mark()),
    "GLOBAL": _Machine.find,
    "BINPERSID": _Machine.read_storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
