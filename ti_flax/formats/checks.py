"""A learned word, and the checks that one out of a stranger's file has to pass."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import FIRST_ENCODER, NOTHING, Embedding

# As safetensors names them.
DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

# The longest prompt of any trainer has 225 tokens, the widest text encoder 4,096.
_MAX_VECTORS = 225
_MAX_WIDTH = 8192
_MAX_TEXT = 80
# As long as a file's name may be.
_MAX_TOKEN = 255
# Marks that turn the direction of what follows them, in a terminal and on a page.
_TURNS = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


class RawWord(NamedTuple):
    """A learned word as it lies in a file: nothing about it has been checked.

    The token is None where the format has no place for it; rows are by text encoder.
    """

    token: object
    rows: dict[str, object]


class Reading(NamedTuple):
    """What a format makes of a file: its words, and what it says about them."""

    words: list[RawWord]
    metadata: Mapping[str, object] = NOTHING


def checked(file: Path, word: RawWord, provenance: Mapping[str, str]) -> Embedding:
    """The word as an embedding; without a token of its own, the file's name is it.

    Raises:
        UserError: what is wrong with its rows or its token.
    """
    token = word.token if isinstance(word.token, str) else file.stem
    if FIRST_ENCODER not in word.rows:
        raise UserError(
            f"{file} has rows for {' and '.join(word.rows)} alone: expected those of "
            f"{FIRST_ENCODER} with them; get the whole file"
        )
    rows = {name: _checked_rows(file, tensor) for name, tensor in word.rows.items()}
    counts = [len(of_one) for of_one in rows.values()]
    if len(set(counts)) != 1:
        raise UserError(
            f"{file} has {' and '.join(map(str, counts))} vectors for its text "
            "encoders: expected as many for each; get it again"
        )
    return Embedding(checked_token(file, token), rows, provenance)


def checked_token(file: Path | str, token: str) -> str:
    """The token, unless it is none: `UserError` says so."""
    if len(token) > _MAX_TOKEN or any(map(_is_strange, token)) or not token.strip():
        raise UserError(
            f"{file} has the token {shown(token)}: expected a word of at most "
            f"{_MAX_TOKEN} letters without control characters"
        )
    return token


def _is_strange(letter: str) -> bool:
    """Whether it would spoil terminals and text files: controls, ends of lines."""
    strange = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
    return strange or unicodedata.bidirectional(letter) in _TURNS


def _checked_rows(file: Path, tensor: object) -> Float32[np.ndarray, "K D"]:
    if not isinstance(tensor, np.ndarray):
        raise UserError(
            f"{file} has a {type(tensor).__name__} in place of rows: expected a tensor"
        )
    if tensor.dtype not in DTYPES.values() or tensor.ndim not in (1, 2):
        raise UserError(
            f"{file} holds a tensor of {tensor.dtype} with {tensor.ndim} dimensions: "
            "expected floating point rows, [vectors, width]"
        )
    if tensor.size == 0:
        raise UserError(f"{file} holds an empty tensor: expected at least one row")
    vectors, width = np.atleast_2d(tensor).shape
    if vectors > _MAX_VECTORS or width > _MAX_WIDTH:
        raise UserError(
            f"{file} is no embedding: it has {vectors} vectors of width {width}, "
            f"expected at most {_MAX_VECTORS} of {_MAX_WIDTH}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.array(np.atleast_2d(tensor), np.float32, order="C")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        raise UserError(
            f"{file} has NaN or infinity in {bad} of {len(rows)} rows: the training "
            "that made it has diverged, take an earlier file"
        )
    return rows


def shown(value: object) -> str:
    """A value out of a stranger's file, short and on one line."""
    return ascii(str(value)[:_MAX_TEXT])
