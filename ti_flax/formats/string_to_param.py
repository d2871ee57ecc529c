"""AUTOMATIC1111's dictionary, in a .pt and in a PNG, and its ancestor, rinongal's.

Both have the rows in `string_to_param`, by token. AUTOMATIC1111 always writes the token
`*` there, says the real one in `name`, and adds the step and the checkpoint. The
original code has the token itself, rows in a ParameterDict, and no name.

The original code puts the rows in place of a token that its vocabulary knows, whose id
is a tensor in `string_to_token`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ti_flax.formats.checks import RawWord, Reading
from ti_flax.formats.content import Content
from ti_flax.formats.metadata import to_texts, token_in
from ti_flax.pickles.torch_pickle import ParameterDict
from ti_flax.text.embedding import FIRST_ENCODER, Embedding

_ANY_TOKEN = "*"
# The id of "*" in CLIP's vocabulary, as AUTOMATIC1111 writes it, and in BERT's.
_ANY_TOKEN_ID, _ANY_TOKEN_ID_OF_BERT = 265, 1008
# The first id past CLIP's vocabulary.
_FIRST_FREE_ID = 49408
# Programs ignore keys that they do not know.
_OURS = "ti_flax"


def find_a1111(content: Content) -> Reading | None:
    words = _words(content)
    if words is None or "name" not in content.value:
        return None
    name = content.value["name"]
    if len(words) == 1 and words[0].token == _ANY_TOKEN:
        words = [words[0]._replace(token=name)]
    facts = {
        key: content.value[key]
        for key in ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
        if content.value.get(key) is not None
    }
    return Reading(words, {**facts, **_ours(content)})


def find_png(content: Content) -> Reading | None:
    return find_a1111(content) if content.kind == "png" else None


def find_rinongal(content: Content) -> Reading | None:
    words = _words(content)
    if words is None or "name" in content.value:
        return None
    # "*" is what the original recipe calls every concept: the file's name says more.
    ours = _ours(content)
    named = [
        word._replace(token=token_in(ours)) if word.token == _ANY_TOKEN else word
        for word in words
    ]
    return Reading(named, ours)


def _words(content: Content) -> list[RawWord] | None:
    if not isinstance(content.value, dict):
        return None
    rows = content.value.get("string_to_param")
    if not isinstance(rows, dict) or not rows:
        return None
    return [RawWord(token, {FIRST_ENCODER: tensor}) for token, tensor in rows.items()]


def _ours(content: Content) -> Mapping[str, object]:
    ours = content.value.get(_OURS)
    return ours if isinstance(ours, dict) else {}


def make_a1111(embedding: Embedding) -> dict[str, Any]:
    provenance = embedding.provenance
    steps = provenance.get("steps", "")
    return {
        "string_to_token": {_ANY_TOKEN: _ANY_TOKEN_ID},
        "string_to_param": {_ANY_TOKEN: embedding.rows[FIRST_ENCODER]},
        "name": embedding.token,
        "step": int(steps) if steps.isdecimal() else None,
        # AUTOMATIC1111's own hash of a single-file checkpoint, which a folder lacks.
        "sd_checkpoint": None,
        "sd_checkpoint_name": provenance.get("base_model"),
        _OURS: to_texts(embedding),
    }


def make_rinongal(embedding: Embedding) -> dict[str, Any]:
    token, id_ = embedding.token, _FIRST_FREE_ID
    if embedding.fits_ldm:
        # Its prompts have the word by this name, as in its own recipe.
        token, id_ = _ANY_TOKEN, _ANY_TOKEN_ID_OF_BERT
    return {
        "string_to_token": {token: np.array(id_, np.int64)},
        "string_to_param": ParameterDict({token: embedding.rows[FIRST_ENCODER]}),
        _OURS: to_texts(embedding),
    }
