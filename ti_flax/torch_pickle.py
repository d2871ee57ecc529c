"""The pickle inside a file of torch.save, written and run without torch.

It is of protocol 2. A tensor is a call of `torch._utils._rebuild_tensor_v2` on a
storage that a persistent id names; the bytes of storages lie elsewhere
(torch/serialization.py, `_save`).

The pickle is run by `pickle_machine`, which calls only the functions in `_GLOBALS` and
imports nothing.
"""

import math
import pickle
import struct
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ti_flax import pickle_machine
from ti_flax.errors import Refused

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


class ParameterDict(NamedTuple):
    """To be written as a `torch.nn.ParameterDict`, which rinongal's loader wants."""

    parameters: dict[str, np.ndarray]


def dumps(value: object) -> tuple[bytes, list[np.ndarray]]:
    """A pickle, and its tensors in the order of their storages "0", "1", ...

    Takes text, whole numbers, None, tensors, `ParameterDict` and dictionaries of these.
    Tensors are written contiguous. A dtype torch has no storage for is a `KeyError`.
    """
    tensors: list[np.ndarray] = []
    program = pickle.PROTO + b"\x02" + _value(value, tensors) + pickle.STOP
    return program, tensors


def _value(value: object, tensors: list[np.ndarray]) -> bytes:
    match value:
        case str():
            return _string(value)
        case int():
            return _integer(value)
        case None:
            return pickle.NONE
        case np.ndarray():
            tensors.append(value)
            return _tensor(str(len(tensors) - 1), value)
        case dict():
            return _dict(value, tensors)
        case ParameterDict(parameters):
            return _parameter_dict(parameters, tensors)
    raise TypeError(f"no pickle for {type(value)}")


def _dict(items: dict[str, object], tensors: list[np.ndarray]) -> bytes:
    written = [_string(key) + _value(value, tensors) for key, value in items.items()]
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(written) + pickle.SETITEMS


def _parameter_dict(parameters: dict[str, np.ndarray], tensors: list) -> bytes:
    """As torch.nn.Module pickles itself: the class, then its attributes.

    `_keys` is where torch from 1.12 on has the order of the keys; before, `_parameters`
    alone holds them. What is left out, torch sets when it loads.
    """
    written = [
        _string(key) + _parameter(tensor, tensors) for key, tensor in parameters.items()
    ]
    state = [
        _string("training") + pickle.NEWTRUE,
        _string("_parameters")
        + _ORDERED_DICT
        + pickle.MARK
        + b"".join(written)
        + pickle.SETITEMS,
        *(
            _string(name) + _ORDERED_DICT
            for name in (
                "_buffers",
                "_backward_hooks",
                "_forward_hooks",
                "_forward_pre_hooks",
                "_state_dict_hooks",
                "_load_state_dict_pre_hooks",
                "_modules",
            )
        ),
        _string("_keys") + _dict(dict.fromkeys(parameters), tensors),
    ]
    return (
        _global("torch.nn.modules.container", "ParameterDict")
        + pickle.EMPTY_TUPLE
        + pickle.NEWOBJ
        + pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(state)
        + pickle.SETITEMS
        + pickle.BUILD
    )


def _parameter(tensor: np.ndarray, tensors: list[np.ndarray]) -> bytes:
    arguments = _tuple(_value(tensor, tensors), pickle.NEWTRUE, _ORDERED_DICT)
    return _global("torch._utils", "_rebuild_parameter") + arguments + pickle.REDUCE


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
        _ORDERED_DICT,
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


_ORDERED_DICT = (
    _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
)


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


class _Machine(pickle_machine.Machine):
    """Knows what torch.save writes."""

    def __init__(self, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(_GLOBALS, _INSTRUCTIONS, "torch.save")
        self._read_storage = read_storage

    def read_storage(self, _: None) -> None:
        """The storage of a persistent id `("storage", dtype, key, device, length)`."""
        kind, dtype, key, _device, length = self.pop(1)[0]
        # A key of another type could be a tuple nested so deep that printing it hangs.
        if kind != "storage" or not isinstance(key, str) or not _is_size(length):
            raise ValueError("a persistent id that is not a storage's")
        if not isinstance(dtype, np.dtype):
            raise ValueError("a storage without a dtype")
        values = np.frombuffer(self._read_storage(key), dtype, length)
        self.push(_Storage(values))


_INSTRUCTIONS: dict[str, pickle_machine.Instruction] = {
    **pickle_machine.BASE_INSTRUCTIONS,
    "BINPERSID": _Machine.read_storage,
}
