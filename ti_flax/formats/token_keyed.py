"""What diffusers writes and reads: the token as the only key of its rows.

SDXL's rows are two files of one token, `learned_embeds` and `learned_embeds_2`.
"""

from pathlib import Path

import numpy as np

from ti_flax.formats.checks import RawWord, Reading, shown
from ti_flax.formats.content import Content
from ti_flax.pickles.refused import Refused
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import FIRST_ENCODER, Embedding

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
# How the file of each text encoder's rows begins.
_FILES = {FIRST_ENCODER: "learned_embeds", "text_encoder_2": "learned_embeds_2"}


def find(content: Content) -> Reading | None:
    """`{token: [n, D]}`."""
    item = _only_item(content)
    if item is None:
        return None
    token, tensor = item
    return Reading([RawWord(token, {FIRST_ENCODER: tensor})], content.metadata)


def find_flat(content: Content) -> Reading | None:
    """`{token: [D]}`, as diffusers up to 0.15 wrote it."""
    item = _only_item(content)
    return find(content) if item is not None and item[1].ndim == 1 else None


def find_flax(content: Content) -> Reading | None:
    return find(content) if content.kind == "npy" else None


def _only_item(content: Content) -> tuple[str, np.ndarray] | None:
    """The token and its rows, of one text encoder."""
    if not isinstance(content.value, dict) or len(content.value) != 1:
        return None
    [(token, tensor)] = content.value.items()
    if token in FIELD_NAMES or not isinstance(token, str):
        return None
    return (token, tensor) if isinstance(tensor, np.ndarray) else None


def make(embedding: Embedding) -> dict[str, np.ndarray]:
    """The rows of the only text encoder; `split` makes SDXL's two files of one each."""
    [rows] = embedding.rows.values()
    return {embedding.token: rows}


def make_flat(embedding: Embedding) -> dict[str, np.ndarray]:
    """The one row as [D], which old diffusers and InvokeAI's `.bin` need."""
    if embedding.num_vectors != 1:
        raise UserError(
            f"{embedding.token} has {embedding.num_vectors} vectors, a flat file holds "
            "one: convert to diffusers"
        )
    [rows] = embedding.rows.values()
    return {embedding.token: rows[0]}


def other_files(first: Path) -> dict[str, Path]:
    """Where the rows of further text encoders lie beside the first's, by encoder.

    Empty where the first file is not named as one of a pair.
    """
    start, *others = _FILES.values()
    if not first.name.startswith(start) or first.name.startswith(tuple(others)):
        return {}
    return {
        encoder: first.with_name(first.name.replace(start, name, 1))
        for encoder, name in _FILES.items()
        if encoder != FIRST_ENCODER
    }


def is_second(file: Path) -> bool:
    """Whether it holds further rows of the word of a file beside it."""
    start, *others = _FILES.values()
    return any(
        file.name.startswith(other)
        and file.with_name(file.name.replace(other, start, 1)).is_file()
        for other in others
    )


def split(first: Path, embedding: Embedding) -> dict[Path, Embedding]:
    """The files of an SDXL pair, with the rows of one text encoder each."""
    files = {FIRST_ENCODER: first, **other_files(first)}
    if not embedding.rows.keys() <= files.keys():
        raise UserError(
            f"{first}: SDXL's rows are two files in diffusers' format, "
            f"{' and '.join(_FILES.values())}; give a folder"
        )
    return {
        files[encoder]: embedding._replace(rows={encoder: rows})
        for encoder, rows in embedding.rows.items()
    }


def join(word: RawWord, encoder: str, content: Content, file: Path) -> RawWord:
    """The word with the rows of one more text encoder, which have to be of its token.

    Raises:
        Refused: when they are not.
    """
    token, rows = _only_item(content) or (None, None)
    if token is None or token != word.token:
        raise Refused(
            f"has {file.name} beside it, which is not the other half of an SDXL pair: "
            f"expected its key {shown(word.token)}; remove or replace one of them"
        )
    return word._replace(rows={**word.rows, encoder: rows})
