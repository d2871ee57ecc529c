"""How much a file may hold together."""

import numpy as np

from ti_flax.pickles.refused import Refused

# Of a file's content; AUTOMATIC1111's is three deep.
_MAX_VALUES = 2**16
_MAX_LETTERS = 2**20
_MAX_DEPTH = 16


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
