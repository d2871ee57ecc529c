"""The words of the vocabulary nearest to learned rows."""

import functools
import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ti_flax.runtime import sharding
from ti_flax.text import known_words

if TYPE_CHECKING:
    import transformers

_NUM_NEAREST = 5


def nearest_words(
    tokenizer: "transformers.PreTrainedTokenizerFast",
    table: Float[Array | np.ndarray, "V D"],
    rows: Float[Array | np.ndarray, "K D"],
) -> list[list[tuple[str, float]]]:
    """The words nearest to each row with their cosines to four digits, nearest first.

    Only words of the tokenizer count: some models have more rows.
    """
    cosines, ids = map(sharding.whole, _nearest(table, rows, len(tokenizer)))
    return [
        [
            (_word(tokenizer, int(id_)), round(float(cosine), 4))
            for id_, cosine in zip(*near, strict=True)
        ]
        for near in zip(ids, cosines, strict=True)
    ]


def words_near(
    tokenizer: "transformers.PreTrainedTokenizerFast",
    table: Float[Array | np.ndarray, "V D"],
    row: Float[np.ndarray, "D"],
    count: int,
    without: Collection[str] = (),
) -> list[str]:
    """Whole words of letters, nearest to the row first, of which some are left out.

    They are not more than `count`, and each is one token wherever a prompt has it.
    """
    known = np.asarray(table)[: len(tokenizer)]
    lengths = np.linalg.norm(known, axis=1)
    cosines = known @ row / np.maximum(lengths, np.finfo(np.float32).tiny)
    near = (_word(tokenizer, int(id_)) for id_ in np.argsort(-cosines, kind="stable"))
    whole = (
        word
        for word in near
        if word.isalpha()
        and word not in without
        and len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    )
    return list(itertools.islice(dict.fromkeys(whole), count))


@functools.partial(jax.jit, static_argnames="num_words")
def _nearest(
    table: Float[Array | np.ndarray, "V D"],
    rows: Float[Array | np.ndarray, "K D"],
    num_words: int,
) -> tuple[Float[Array, "K N"], Int[Array, "K N"]]:
    """Cosines and ids, of the first `num_words`, of the words nearest to each row."""

    def unit(vectors: Array) -> Array:
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)

    highest = jax.lax.Precision.HIGHEST
    cosines = jnp.matmul(unit(rows), unit(table[:num_words]).T, precision=highest)
    # A row of zeros is near to nothing.
    return tuple(jax.lax.top_k(jnp.nan_to_num(cosines, nan=-1.0), _NUM_NEAREST))


def _word(tokenizer: "transformers.PreTrainedTokenizerFast", id_: int) -> str:
    """A word as people write it; an ellipsis is where a part of a longer one ends.

    Of CLIP's that is behind what only begins words, of BERT's before what continues
    them.
    """
    token = tokenizer.convert_ids_to_tokens(id_)
    if id_ in tokenizer.all_special_ids:
        return token
    if known_words.has_word_pieces(tokenizer):
        return f"…{token[2:]}" if token.startswith("##") else token
    word = tokenizer.decode([id_]).strip()
    if not word or "\N{REPLACEMENT CHARACTER}" in word:  # not a character by itself
        word = token.removesuffix("</w>")
    return word if token.endswith("</w>") else f"{word}…"
