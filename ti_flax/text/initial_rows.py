"""The rows that learning starts from."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32

from ti_flax.runtime.errors import UserError
from ti_flax.text.tokenizer import shortened

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)


def initializer_ids(
    tokenizer: "transformers.PreTrainedTokenizerFast", text: str
) -> list[int]:
    """Returns the ids of one or several words from which the vectors start.

    Raises:
        UserError: the text is empty, or part of it is not in the vocabulary.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Those of CLIP and of BERT; what pads may be a word, as SD 2's "!" is.
    marks = ("bos", "eos", "cls", "sep", "unk")
    if not ids or {getattr(tokenizer, f"{each}_token_id") for each in marks} & {*ids}:
        raise UserError(
            f"initializer_token {text!r} must be one or several words of the"
            f" tokenizer's vocabulary, found {tokenizer.convert_ids_to_tokens(ids)};"
            f" choose a plain word such as 'toy', or leave it out for a random start"
        )
    return ids


def _spread(num_ids: int, num_vectors: int) -> list[int]:
    """Which of n ids each vector starts from: vector i of K from i * n // K."""
    return [i * num_ids // num_vectors for i in range(num_vectors)]


def warn_of_unused_pieces(
    tokenizer: "transformers.PreTrainedTokenizerFast", text: str, num_vectors: int
) -> None:
    """Warns where an initializer has more pieces than vectors to start."""
    pieces = tokenizer.convert_ids_to_tokens(initializer_ids(tokenizer, text))
    if len(pieces) > num_vectors:
        used = [pieces[k] for k in _spread(len(pieces), num_vectors)]
        _log.warning(
            "initializer_token: %r is %d pieces, %s; num_vectors %d starts from %s,"
            " %d would use all",
            shortened(text),
            len(pieces),
            shortened(" + ".join(pieces)),
            num_vectors,
            shortened(" + ".join(used)),
            len(pieces),
        )


def initial_rows(
    table: Float32[np.ndarray, "V D"],
    ids: Sequence[int] | None,
    num_vectors: int,
    jitter: float,
    seed: int,
    scale: float = 1.0,
) -> Float32[np.ndarray, "K D"]:
    """Returns the rows that learning starts from, a function of its arguments alone.

    With n ids, vector i of K starts as `table[ids[i * n // K]]`: the words are spread
    over the vectors in order, and of more words than vectors some are left out. Equal
    rows would differ only by their position in the prompt, so a vector that equals an
    earlier one gets normal noise of `jitter` standard deviations; `jitter=0` leaves
    it identical, as diffusers does.

    Without ids (None), coordinate d of every vector is drawn from the normal
    distribution with the mean and standard deviation of `table[:, d]` over all V rows
    (the population's, in float64). The same standard deviation is the jitter's unit.

    All is times `scale`.
    """
    random = np.random.default_rng(seed)
    noise = random.standard_normal((num_vectors, table.shape[1]))
    std = table.std(axis=0, dtype=np.float64)
    if ids is None:
        mean = table.mean(axis=0, dtype=np.float64)
        return (scale * (mean + std * noise)).astype(np.float32)
    chosen = [ids[k] for k in _spread(len(ids), num_vectors)]
    rows = table[chosen].astype(np.float64)
    _, first_seen = np.unique(rows, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(num_vectors), first_seen)
    rows[repeated] += jitter * std * noise[repeated]
    return (scale * rows).astype(np.float32)


def vocabulary_norms(table: Float[np.ndarray, "V D"]) -> tuple[float, float]:
    """The median length of a vocabulary's trained rows, and what 99 % of all are below.

    Where most rows were never trained, they are as short as they were initialised, and
    those that were are a group of their own: more than a hundredth of all, longer than
    1.5 medians of all, with a gap before it (not a tenth as many from 1.25 on). Else
    all count as trained.
    """
    lengths = np.linalg.norm(table, axis=-1)
    median, high = np.percentile(lengths, (50, 99))
    longer = lengths > 1.5 * median
    between = (lengths > 1.25 * median) & ~longer
    if high > 1.5 * median and 10 * between.sum() < longer.sum():
        median = np.median(lengths[longer])
    return float(median), float(high)
