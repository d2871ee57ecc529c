"""The exception of the format readers."""

import pickle
import struct


class Refused(Exception):
    """Why a file is refused: the rest of the sentence that begins with its path."""


# What the unpickler, JSON, numpy and zipfile raise on bytes that make no sense.
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
