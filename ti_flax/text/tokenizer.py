"""Prompts to token ids, with words the tokenizer never knew."""

import copy
import functools
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int32

from ti_flax.runtime.errors import UserError, one_line
from ti_flax.text import known_words, tokenizer_files
from ti_flax.text.tokenizer_files import Pieces

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)

# Of the text encoders of all families here.
CONTEXT_LENGTH = 77
# A tokenizer saved without a limit says 1e30; nothing real comes near this.
_NO_LIMIT = 10**6
_SHOWN_LENGTH = 60


def load_tokenizer(
    folder: Path, pieces: Pieces = "clip"
) -> "transformers.PreTrainedTokenizerFast":
    """Loads a tokenizer from a model's tokenizer folder; PyTorch is not needed.

    Reads CLIP's `vocab.json` with `merges.txt`, or BERT's `vocab.txt`, as repositories
    ship them, or the `tokenizer.json` that transformers 5 writes. Padding token and
    length are the folder's own (`<|endoftext|>` in SD 1, `!` in SD 2); a folder that
    states no length gets 77, which with BERT's is also the most, as in
    LDMTextToImagePipeline: the same files serve models of 512.

    Raises:
        UserError: files are missing or damaged, or the tokenizer is of another kind
            than `pieces`, that of the text encoder.
    """
    tokenizer_files.check(folder, pieces)
    # Without PyTorch, transformers advises on stderr that models are unavailable.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # a second to import: only when needed

    classes = {"clip": "CLIPTokenizer", "bert": "BertTokenizer"}
    kind = getattr(transformers, classes[pieces])
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Warning:  # an error by `python -W`: nothing is wrong with the files
        raise
    except Exception as error:  # its Rust reader raises bare Exception
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({one_line(error)}); use that of "
            "the model as it was published"
        ) from error
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{folder}: the tokenizer has no pad_token; use that of the model as it "
            "was published"
        )
    _check_pieces(folder, tokenizer.get_vocab(), pieces)
    longest = CONTEXT_LENGTH if pieces == "bert" else _NO_LIMIT
    if tokenizer.model_max_length > longest:
        tokenizer.model_max_length = CONTEXT_LENGTH
    return tokenizer


def _check_pieces(folder: Path, vocabulary: Collection[str], pieces: Pieces) -> None:
    of_clip = any(word.endswith("</w>") for word in vocabulary)
    if pieces == "clip" and not of_clip:
        raise UserError(
            f"{folder}: expected CLIP's tokenizer, whose vocabulary marks the ends of"
            f" words with </w>, found another family's; use a Stable Diffusion model"
        )
    of_bert = any(word.startswith("##") for word in vocabulary) and not of_clip
    if pieces == "bert" and not of_bert:
        raise UserError(
            f"{folder}: expected BERT's tokenizer, whose vocabulary marks with ## what"
            f" continues a word, found another family's; use a latent diffusion model"
        )


def vector_names(token: str, num_vectors: int) -> list[str]:
    """Names a placeholder's vectors as diffusers does: `tok`, `tok_1`, `tok_2`, ..."""
    return [token, *(f"{token}_{i}" for i in range(1, num_vectors))]


class Fit(NamedTuple):
    """How a prompt fits into the L tokens of a text encoder."""

    # With the start and end marks.
    tokens: int
    # The end of the prompt that has no room.
    cut_off: str
    # The first learned vector in it, by its name.
    lost: str | None
    # Whether any learned vector is in the prompt.
    has_word: bool


class PromptTokenizer:
    """Tokenizes prompts in which each placeholder stands for its learned vectors.

    Placeholders are found as transformers finds words given to `add_tokens`: anywhere
    in the text, letter case aside. A placeholder is then expanded to all its vectors,
    as diffusers' `maybe_convert_prompt` does, but in the ids and not in the text:
    there `<cat>` inside `<cat>_1` cannot be expanded by mistake, and a placeholder
    with capitals keeps all its vectors (diffusers 0.42 finds only the first). A
    vector may also be named by itself (`<cat>_1`).

    Attributes:
        words: number of vectors of each placeholder.
        vocab_size: V, rows of the text encoder's table. The learned vectors have the
            ids V, V+1, ... in the order of `words`, even if the tokenizer knows fewer
            than V words.
        length: L, tokens of a prompt with its start and end marks.
    """

    def __init__(
        self,
        tokenizer: "transformers.PreTrainedTokenizerFast",
        vocab_size: int,
        words: Mapping[str, int],
    ) -> None:
        """Adds `words` (placeholder -> number of vectors) to a copy of `tokenizer`.

        Raises:
            UserError: the table has fewer rows than the tokenizer has words; or a
                placeholder is empty, contains whitespace, is a known word, is part of
                another placeholder's name, or cannot be one token.
        """
        known = max(tokenizer.get_vocab().values()) + 1
        if vocab_size < known:
            raise UserError(
                f"the tokenizer knows {known} words but the text encoder has only"
                f" {vocab_size} rows; use the tokenizer and text encoder of one model"
            )
        _check_placeholders(tokenizer, words)
        self.words = dict(words)
        self.vocab_size = vocab_size
        self.length = tokenizer.model_max_length
        self._names = [n for word, k in words.items() for n in vector_names(word, k)]
        self._tokenizer = _with_words(tokenizer, self._names)
        self._learned = self._learned_ids()

    def check_length(self, positions: int) -> None:
        """Raises `UserError` unless a text encoder has a position for each token."""
        if self.length > positions:
            raise UserError(
                f"the tokenizer makes {self.length} tokens, the text encoder takes "
                f"{positions}; use the tokenizer and text encoder of one model"
            )

    def __call__(
        self, prompts: Sequence[str], check: bool = True
    ) -> Int32[np.ndarray, "N L"]:
        """Returns ids, cut and padded to L tokens as the tokenizer itself would.

        Warns of words that are cut off (not with `check=False`).

        Raises:
            UserError: a learned vector would be cut off (not with `check=False`).
        """
        rows = [self._encode(prompt, check) for prompt in prompts]
        return np.array(rows, np.int32).reshape(-1, self.length)

    def _learned_ids(self) -> dict[int, list[int]]:
        """Maps the tokenizer's id of each added name to the learned ids it means."""
        added = self._tokenizer.convert_tokens_to_ids(self._names)
        learned = {id_: [self.vocab_size + k] for k, id_ in enumerate(added)}
        for word, num_vectors in self.words.items():
            k = self._names.index(word)
            start = self.vocab_size + k
            learned[added[k]] = list(range(start, start + num_vectors))
        return learned

    def fit(self, prompt: str) -> Fit:
        """What of a prompt is kept; nothing is said or raised."""
        return self._fit(prompt, self._ids(prompt))

    def _fit(self, prompt: str, ids: list[int]) -> Fit:
        lost = [i for i in ids[self.length - 1 : -1] if i >= self.vocab_size]
        return Fit(
            len(ids),
            self._cut_off(prompt) if len(ids) > self.length else "",
            self._names[lost[0] - self.vocab_size] if lost else None,
            any(i >= self.vocab_size for i in ids),
        )

    def _ids(self, prompt: str) -> list[int]:
        # verbose=False: no warning about length, which is dealt with here.
        plain = self._tokenizer(prompt, verbose=False)
        return [i for id_ in plain["input_ids"] for i in self._learned.get(id_, [id_])]

    def _encode(self, prompt: str, check: bool) -> list[int]:
        ids = self._ids(prompt)
        if check:
            self._check(prompt, self._fit(prompt, ids))
        if len(ids) > self.length:
            return [*ids[: self.length - 1], ids[-1]]
        return ids + [self._tokenizer.pad_token_id] * (self.length - len(ids))

    def _check(self, prompt: str, fit: Fit) -> None:
        if fit.lost is not None:
            raise UserError(
                f"prompt {shortened(prompt)!r} has {fit.tokens} tokens with its start"
                f" and end marks and the limit is {self.length}:"
                f" {fit.lost!r} would be cut off; shorten"
                f" the prompt or move the placeholder forward"
            )
        if fit.cut_off:
            _log.warning(
                "prompt %r has %d tokens with its start and end marks and the limit"
                " is %d: %r is cut off; shorten it",
                shortened(prompt),
                fit.tokens,
                self.length,
                shortened(fit.cut_off),
            )

    def _cut_off(self, prompt: str) -> str:
        """The end of a prompt of more than L tokens that has no room."""
        plain = self._tokenizer(prompt, verbose=False, return_offsets_mapping=True)
        pairs = zip(plain["input_ids"], plain["offset_mapping"], strict=True)
        starts = [
            start for id_, (start, _) in pairs for _ in self._learned.get(id_, [id_])
        ]
        return prompt[starts[self.length - 1] :]


def token_ids(
    tokenizers: Mapping[str, PromptTokenizer], prompts: Sequence[str]
) -> dict[str, Int32[np.ndarray, "P L"]]:
    """Ids of prompts for each text encoder, by its name.

    Raises `UserError` where a learned vector would be cut off.
    """
    ids: dict[str, Int32[np.ndarray, "P L"]] = {}
    for name, tokenize in tokenizers.items():
        # What the first says of a prompt holds for all: they share a vocabulary.
        ids[name] = tokenize(prompts, check=not ids)
    return ids


def _check_placeholders(
    tokenizer: "transformers.PreTrainedTokenizerFast", words: Mapping[str, int]
) -> None:
    """Raises UserError for names that could not be told apart in a prompt."""
    for word, num_vectors in words.items():
        if not word or any(character.isspace() for character in word):
            raise UserError(
                f"placeholder {word!r} must be one word without whitespace; choose a"
                f" name such as '<my-cat>'"
            )
        for name in vector_names(word, num_vectors):
            if known_words.is_known(tokenizer, name):
                raise UserError(
                    f"placeholder {name!r} is already in the tokenizer's vocabulary, as"
                    f" all common words and many rare ones (sks) are; choose a new word"
                    f" such as {known_words.new_word(tokenizer, name)!r}"
                )
    # Added words are sought in normalized text, so it is there that they may collide.
    normalize = functools.partial(known_words.normal_form, tokenizer)
    for word in words:
        for other, num_vectors in words.items():
            names = vector_names(other, num_vectors)
            if word != other and any(normalize(word) in normalize(n) for n in names):
                raise UserError(
                    f"placeholder {word!r} is part of the name of another placeholder,"
                    f" {other!r} with {num_vectors} vectors; rename one of them"
                )


def _with_words(
    tokenizer: "transformers.PreTrainedTokenizerFast", names: Sequence[str]
) -> "transformers.PreTrainedTokenizerFast":
    """Returns a copy of `tokenizer` that reads each of `names` as one token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(list(names))
    for name in names:
        # Special tokens are sought first: SD 2 pads with "!", and so splits "toy!".
        ids = tokenizer(name, add_special_tokens=False)["input_ids"]
        if ids != [tokenizer.convert_tokens_to_ids(name)]:
            raise UserError(
                f"placeholder {name!r} cannot be one token: this tokenizer reads"
                f" {tokenizer.convert_ids_to_tokens(ids)}; choose a name such as"
                f" '<my-cat>'"
            )
    return tokenizer


def shortened(text: str) -> str:
    if len(text) <= _SHOWN_LENGTH:
        return text
    return f"{text[:_SHOWN_LENGTH]}..."
