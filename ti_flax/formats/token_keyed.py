"""What diffusers writes and reads: the token as the only key of its rows.

SDXL's rows are two files of one token, `learned_embeds` and `learned_embeds_2`.
"""

from pathlib import Path

import numpy as np

from ti_flax.formats.checks import Reading, Word, shown
from ti_flax.formats.content import Content
from ti_flax.formats.refused import Refused
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

# Alone in a file these look like a token, but are other programs' field names.
FIELD_NAMES = frozenset(
    {
        "clip_g",
        "clip_l",
        "emb_params",
        "emp_params",
        "emp_params_out",
        "t5",
        "t5xxl",
        "text_encoders_0",
        "text_encoders_1",
    }
)
_FIRST, _SECOND = "learned_embeds", "learned_embeds_2"


def find(content: Content) -> Reading | None:
    """`{token: [n, D]}`."""
    word = _only_item(content)
    return None if word is None else Reading([word], content.metadata)


def find_flat(content: Content) -> Reading | None:
    """`{token: [D]}`, as diffusers up to 0.15 wrote it."""
    reading = find(content)
    return reading if reading and reading.words[0].rows.ndim == 1 else None


def find_flax(content: Content) -> Reading | None:
    return find(content) if content.kind == "npy" else None


def _only_item(content: Content) -> Word | None:
    if not isinstance(content.value, dict) or len(content.value) != 1:
        return None
    [(token, tensor)] = content.value.items()
    if token in FIELD_NAMES or not isinstance(token, str):
        return None
    return Word(token, tensor) if isinstance(tensor, np.ndarray) else None


def make(embedding: Embedding) -> dict[str, np.ndarray]:
    return {embedding.token: embedding.rows}


def make_flat(embedding: Embedding) -> dict[str, np.ndarray]:
    """The one row as [D], which old diffusers and InvokeAI's `.bin` need."""
    if len(embedding.rows) != 1:
        raise UserError(
            f"{embedding.token} has {len(embedding.rows)} vectors, a flat file holds "
            "one: convert to diffusers"
        )
    return {embedding.token: embedding.rows[0]}


def second_file(first: Path) -> Path | None:
    """Where the rows of SDXL's second text encoder lie beside a first file."""
    if not first.name.startswith(_FIRST) or first.name.startswith(_SECOND):
        return None
    return first.with_name(first.name.replace(_FIRST, _SECOND, 1))


def split(first: Path, embedding: Embedding) -> dict[Path, Embedding]:
    """The files of an SDXL pair, with the rows of one text encoder each."""
    second, rows_2 = second_file(first), embedding.rows_2
    if second is None or rows_2 is None:
        raise UserError(
            f"{first}: SDXL's rows are two files in diffusers' format, {_FIRST} and "
            f"{_SECOND}; give a folder"
        )
    return {
        first: embedding._replace(rows_2=None),
        second: embedding._replace(rows=rows_2, rows_2=None),
    }


def join(first: Word, second: Content, file: Path) -> Word:
    """The pair of two files, which have to be of one token."""
    word = _only_item(second)
    if word is None or word.token != first.token:
        raise Refused(
            f"has {file.name} beside it, which is not the other half of an SDXL pair: "
            f"expected its key {shown(first.token)}; remove or replace one of them"
        )
    return Word(first.token, first.rows, word.rows)
