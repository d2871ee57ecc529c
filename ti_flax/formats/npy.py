"""The .npy of diffusers' Flax script: numpy's own file around a pickled dictionary.

`np.load` opens it only with `allow_pickle=True`, which executes what the pickle says.
Here `pickle_machine` loads it, which executes nothing.
"""

import struct
from pathlib import Path

import numpy as np

from ti_flax.pickles import pickle_machine
from ti_flax.pickles.pickled_arrays import Array
from ti_flax.pickles.refused import SIGNS_OF_DAMAGE, Refused
from ti_flax.runtime.errors import UserError

MAGIC = b"\x93NUMPY"


def save(path: Path, value: dict[str, np.ndarray]) -> None:
    """Writes what `np.save(path, value)` writes."""
    with open(path, "wb") as file:  # given a path, numpy appends its own suffix
        np.save(file, np.array(value, object), allow_pickle=True)


def load(path: Path) -> object:
    """What was saved, its arrays as numpy's; `UserError` when it is no dictionary."""
    try:
        header, program = _split(path.read_bytes())
        if b"'descr': '|O'" not in header or b"'shape': ()" not in header:
            raise Refused(
                "holds a bare array: expected the dictionary with the token that "
                "diffusers' Flax script writes"
            )
        return _arrays(pickle_machine.Unpickler(program, {}, "np.save").load())
    except Refused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except SIGNS_OF_DAMAGE as error:
        raise UserError(
            f"{path} is damaged: its content is not what np.save writes; get it again"
        ) from error


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The text that describes the array (numpy.lib.format), and what follows it."""
    version = len(MAGIC)
    # Version 1 has two bytes for the text's length, the later ones have four.
    length_format = "<H" if data[version] == 1 else "<I"
    (length,) = struct.unpack_from(length_format, data, version + 2)
    start = version + 2 + struct.calcsize(length_format)
    return data[start : start + length], data[start + length :]


def _arrays(outer: object) -> object:
    """The dictionary inside the outermost array, with arrays for their stand-ins."""
    content = outer.value if isinstance(outer, Array) else None
    if not isinstance(content, dict):
        raise ValueError("no dictionary")
    return {
        key: item.value if isinstance(item, Array) else item
        for key, item in content.items()
    }
