"""Files of a stranger's tokenizer, checked before transformers opens them."""

import math
from pathlib import Path
from typing import Literal

from ti_flax.runtime.errors import UserError, shown
from ti_flax.runtime.json_settings import Settings
from ti_flax.runtime.regular_files import (
    MAX_JSON_BYTES,
    names_in,
    open_regular,
    read_json,
)

# What a word is cut into: CLIP's byte pairs, of which the last is marked with </w>, or
# BERT's word-pieces, of which all but the first are marked with ##.
Pieces = Literal["clip", "bert"]

NAMES: dict[Pieces, str] = {"clip": "CLIP's", "bert": "BERT's"}
_LAYOUTS: dict[Pieces, tuple[tuple[str, ...], ...]] = {
    "clip": (("vocab.json", "merges.txt"), ("tokenizer.json",)),
    "bert": (("vocab.txt",), ("tokenizer.json",)),
}
# transformers reads those that are there.
_OBJECTS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_TEXTS = (".json", ".txt", ".jinja")
# More than any text encoder has rows.
_MAX_ID = 2**20
# A start, a word and an end.
_FEWEST_TOKENS = 3
_MISSING = "point to a complete model folder"
_INSTEAD = "use a Stable Diffusion model"


def check(folder: Path, pieces: Pieces) -> None:
    """Raises `UserError` unless the files are there, regular, short and of their type.

    What they say is for transformers to judge.
    """
    names = names_in(folder)
    layouts = _LAYOUTS[pieces]
    if not any(all(name in names for name in files) for files in layouts):
        wanted = " or ".join(" with ".join(files) for files in layouts)
        raise UserError(
            f"{folder}: expected {NAMES[pieces]} tokenizer, {wanted}, and found "
            f"neither; {_MISSING}"
        )
    for name in names:
        if name.endswith(_TEXTS):
            try:
                with open_regular(folder / name, MAX_JSON_BYTES):
                    pass
            except FileNotFoundError as error:
                raise UserError(
                    f"{folder / name}: leads to no file; {_MISSING}"
                ) from error
    objects = {
        name: read_json(folder / name, _MISSING) for name in _OBJECTS if name in names
    }
    for name in ("vocab.json", "added_tokens.json"):
        _check_ids(folder / name, objects.get(name, {}))
    file = "tokenizer_config.json"
    config = Settings(folder.name, objects.get(file, {}), _INSTEAD, file)
    config.number("model_max_length", _FEWEST_TOKENS, math.inf, 77)


def _check_ids(file: Path, words: dict) -> None:
    for word, id_ in words.items():
        if type(id_) is not int or not 0 <= id_ < _MAX_ID:
            raise UserError(
                f"{file}: the id of {shown(word)} is {shown(id_)}, expected 0 to "
                f"{_MAX_ID - 1}; {_INSTEAD}"
            )
