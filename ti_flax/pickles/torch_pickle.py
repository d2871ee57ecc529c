"""The pickle inside a file of torch.save, written and loaded without torch.

It is of protocol 2. A tensor is a call of `torch._utils._rebuild_tensor_v2` on a
storage that a persistent id names; the bytes of storages lie elsewhere
(torch/serialization.py, `_save`).

Both ways are the standard library's, with our own functions in place of torch's:
`_NAMES` says which stands for which.
"""

import collections
import copyreg
import io
import math
import pickle
import types
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from ti_flax.pickles import pickle_machine
from ti_flax.pickles.pickled_arrays import Array, Function
from ti_flax.pickles.refused import Refused
from ti_flax.pickles.sizes import is_shape, is_size

# torch's name of a storage, torch's name of the numbers, and ours.
_DTYPES = (
    ("FloatStorage", "float32", np.dtype(np.float32)),
    ("HalfStorage", "float16", np.dtype(np.float16)),
    ("BFloat16Storage", "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    ("DoubleStorage", "float64", np.dtype(np.float64)),
    ("LongStorage", "int64", np.dtype(np.int64)),
    ("IntStorage", "int32", np.dtype(np.int32)),
    ("ShortStorage", "int16", np.dtype(np.int16)),
    ("CharStorage", "int8", np.dtype(np.int8)),
    ("ByteStorage", "uint8", np.dtype(np.uint8)),
    ("BoolStorage", "bool", np.dtype(np.bool_)),
)


class ParameterDict(NamedTuple):
    """To be written as a `torch.nn.ParameterDict`, which rinongal's loader wants."""

    parameters: dict[str, np.ndarray]


class _Parameter(NamedTuple):
    tensor: np.ndarray


class _StorageType(NamedTuple):
    name: str


class _StorageId(NamedTuple):
    key: int
    tensor: np.ndarray


def dumps(value: object) -> tuple[bytes, list[np.ndarray]]:
    """A pickle, and its tensors in the order of their storages "0", "1", ...

    Takes text, numbers, None, tensors, `ParameterDict` and dictionaries of these.
    Tensors are written contiguous. A dtype torch has no storage for is a `KeyError`.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.tensors


class _Pickler(pickle._Pickler):
    """Writes numpy's arrays as torch's tensors, and our functions by torch's names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        # No memo, which goes by identity: equal values would give different bytes.
        self.fast = True
        self.tensors: list[np.ndarray] = []

    def persistent_id(self, value: object) -> tuple | None:
        if not isinstance(value, _StorageId):
            return None
        storage = _StorageType(_STORAGES[value.tensor.dtype])
        return ("storage", storage, str(value.key), "cpu", value.tensor.size)

    def reducer_override(self, value: object) -> Any:
        match value:
            case np.ndarray():
                self.tensors.append(value)
                return _rebuild_tensor, _tensor_arguments(len(self.tensors) - 1, value)
            case _Parameter(tensor):
                hooks: dict = collections.OrderedDict()
                return _rebuild_parameter, (tensor, True, hooks)
            case ParameterDict(parameters):
                state = _parameter_dict_state(parameters)
                return copyreg.__newobj__, (ParameterDict,), state  # type: ignore
        return NotImplemented

    def _save_name(self, value: Any) -> None:
        self.write(pickle.GLOBAL + _NAMES[value].replace(" ", "\n").encode() + b"\n")

    def _save_storage_type(self, value: _StorageType) -> None:
        self.write(pickle.GLOBAL + f"torch\n{value.name}\n".encode())

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,
        type: _save_name,
        types.FunctionType: _save_name,
        _StorageType: _save_storage_type,
    }


def _tensor_arguments(key: int, tensor: np.ndarray) -> tuple:
    strides = (math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
    storage = _StorageId(key, tensor)
    return storage, 0, tensor.shape, tuple(strides), False, collections.OrderedDict()


def _parameter_dict_state(parameters: dict[str, np.ndarray]) -> dict[str, object]:
    """The attributes of a torch.nn.Module, as it pickles itself.

    `_keys` is where torch from 1.12 on has the order of the keys; before, `_parameters`
    alone holds them. What is left out, torch sets when it loads.
    """
    empty = (
        "_buffers",
        "_backward_hooks",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
        "_modules",
    )
    return {
        "training": True,
        "_parameters": collections.OrderedDict(
            (key, _Parameter(tensor)) for key, tensor in parameters.items()
        ),
        **{name: collections.OrderedDict() for name in empty},
        "_keys": dict.fromkeys(parameters),
    }


def loads(
    program: bytes,
    read_storage: Callable[[str], bytes | memoryview],
    kind: pickle_machine.Kind = pickle_machine.EMBEDDING,
) -> object:
    """The object a pickle makes, tensors as read-only numpy arrays.

    `read_storage` gives the bytes of the storage with a key. Dictionaries (OrderedDict
    and ParameterDict too) come as dict, parameters as their tensor; arrays of one
    storage share its memory, as the tensors did. The tensors of any device come alike.

    Raises:
        Refused: when the program wants what no file of tensors needs, reaches beyond a
            storage or takes more work than a file of its kind does.
        SIGNS_OF_DAMAGE: one of `refused`'s, on bytes that make no sense.
    """
    return _Unpickler(program, read_storage, kind).load()


class _Unpickler(pickle_machine.Unpickler):
    def __init__(
        self,
        program: bytes,
        read_storage: Callable[[str], bytes | memoryview],
        kind: pickle_machine.Kind,
    ) -> None:
        known = _KNOWN_OF_MODEL if kind is pickle_machine.MODEL else _KNOWN
        super().__init__(program, known, "torch.save", kind)
        self._read_storage = read_storage

    def persistent_load(self, identity: object) -> "_Storage":
        """The storage of `("storage", dtype, key, device, length)`."""
        if type(identity) is not tuple or len(identity) != 5:
            raise ValueError("a persistent id that is not a storage's")
        kind, dtype, key, _device, length = identity
        if type(kind) is not str or kind != "storage" or type(key) is not str:
            raise ValueError("a persistent id that is not a storage's")
        if not isinstance(dtype, np.dtype) or not is_size(length):
            raise ValueError("a storage without a dtype and a length")
        return _Storage(np.frombuffer(self._read_storage(key), dtype, length))


class _Storage(NamedTuple):
    """The elements that tensors are views of, one-dimensional and contiguous.

    A type of its own, so that no program passes a tensor for it: a tensor that is a
    view has other bounds than its memory.
    """

    values: np.ndarray


def _rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *_autograd: object
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: a view, so that no shape costs memory."""
    if type(storage) is not _Storage:
        raise ValueError("a tensor without a storage")
    if not (is_size(offset) and is_shape(size) and is_shape(stride)):
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


def _rebuild_parameter(tensor: object, *_autograd: object) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        raise ValueError("a parameter that is no tensor")
    return tensor


def _rebuild_on_device(tensor: object, *_dtype_and_device: object) -> np.ndarray:
    """A tensor of Apple's GPU, DirectML or XLA, pickled as what it is on the CPU.

    The dtype is that of the CPU's copy, or bfloat16 where numpy's is float32, which
    holds the same values.
    """
    return _rebuild_parameter(tensor.value if type(tensor) is Array else tensor)


def _new_dict() -> dict:
    return {}


def _set(items: object) -> object:
    """A ParameterDict's attributes hold sets, which nobody reads."""
    return items


_NAMES: dict[Callable[..., object], str] = {
    _rebuild_tensor: "torch._utils _rebuild_tensor_v2",
    _rebuild_parameter: "torch._utils _rebuild_parameter",
    collections.OrderedDict: "collections OrderedDict",
    ParameterDict: "torch.nn.modules.container ParameterDict",
}
_STORAGES = {dtype: storage for storage, _, dtype in _DTYPES}

# All that a file may name. Functions are called, dtypes stand in the ids of storages
# and as arguments.
_KNOWN: dict[str, object] = {
    _NAMES[_rebuild_tensor]: Function(_rebuild_tensor, 6, 7),
    _NAMES[_rebuild_parameter]: Function(_rebuild_parameter, 3, 3),
    _NAMES[ParameterDict]: Function(_new_dict, 0, 0),
    _NAMES[collections.OrderedDict]: Function(_new_dict, 0, 0),
    "__builtin__ set": Function(_set, 1, 1),
    # torch up to 1.11, up to 2.5, and since.
    "torch._utils _rebuild_xla_tensor": Function(_rebuild_on_device, 4, 4),
    "torch._utils _rebuild_device_tensor_from_numpy": Function(
        _rebuild_on_device, 4, 4
    ),
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": Function(
        _rebuild_on_device, 4, 4
    ),
    **{f"torch {storage}": dtype for storage, _, dtype in _DTYPES},
    **{f"torch {numbers}": dtype for _, numbers, dtype in _DTYPES},
}


def _nothing(*_: object) -> None:
    """A value that is in the file and that nobody reads."""


# Checkpoints of Lightning's trainer keep its state beside the weights: a score, and
# dictionaries by the classes of callbacks, of which the name is enough.
_LIGHTNING = "pytorch_lightning.callbacks"
_KNOWN_OF_MODEL: dict[str, object] = {
    **_KNOWN,
    "numpy.core.multiarray scalar": Function(_nothing, 2, 2),
    "numpy._core.multiarray scalar": Function(_nothing, 2, 2),
    f"{_LIGHTNING}.model_checkpoint ModelCheckpoint": "ModelCheckpoint",
    f"{_LIGHTNING}.early_stopping EarlyStopping": "EarlyStopping",
    f"{_LIGHTNING}.lr_monitor LearningRateMonitor": "LearningRateMonitor",
}
