"""Says what an embedding file holds, or a model in one file."""

import json
import os
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, Field

from ti_flax.config import validation
from ti_flax.config.fields import (
    NameOrPath,
    OptionalName,
    OptionalNameOrPath,
    Revision,
    Settings,
)
from ti_flax.config.signatures import InspectSettings, with_keys_of
from ti_flax.formats import bounds, describe_model, find, registry
from ti_flax.pickles.refused import Refused
from ti_flax.text.embedding import Embedding

USAGE = "FILE [--model NAME]"


class InspectKeys(Settings):
    """What to look at."""

    file: NameOrPath = Field(
        description="embedding file, folder that a run wrote, or Hub id; or a model in "
        "one file"
    )
    model: OptionalNameOrPath = Field(
        None,
        description="base model, a folder or Hub id: shows the words of its vocabulary "
        "that are nearest to each vector",
    )
    revision: Revision = None
    token: OptionalName = Field(None, description="which word, of a file with several")


GROUPS: dict[str, type[BaseModel]] = {"File": InspectKeys}


@with_keys_of(InspectKeys, InspectSettings)
def describe_embedding(**settings: Unpack[InspectSettings]) -> str:
    """What a file holds, in lines of `fact: value`.

    As in `describe_embedding(file="cat.pt", model="sd-1-5")`: format, token, vectors,
    width, base models that fit, norms, with a model the nearest words by cosine, and
    provenance. Of a model in one file (.safetensors, .ckpt): family, parts, what it
    predicts and what tells so, metadata.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(InspectKeys, settings, "with --key value")
    path = Path(os.path.expanduser(checked.file))
    if describe_model.is_model(path):
        return "\n".join(describe_model.describe(path))
    found = registry.read(find.find_file(checked.file), checked.token)
    learned = found.embedding
    norms = [
        ", ".join(f"{norm:.3f}" for norm in _norms(rows))
        for rows in learned.rows.values()
    ]
    lines = [
        f"file: {found.file}",
        f"format: {found.format} ({registry.FORMATS[found.format].program})",
        f"token: {learned.token}",
        f"vectors: {learned.num_vectors}",
        f"width: {' and '.join(map(str, learned.widths.values()))}",
        f"fits: {learned.family}",
        f"norms: {'; '.join(norms)}",
    ]
    if checked.model is not None:
        lines += _nearest_words(learned, checked)
    facts = {**found.metadata, **_settings(learned)}
    return "\n".join(lines + describe_model.fact_lines(facts))


def _settings(learned: Embedding) -> dict[str, object]:
    """The settings of the run, which are JSON, each by itself."""
    try:
        settings = json.loads(learned.provenance["settings"])
        bounds.check_bounds(settings)
    except (LookupError, RecursionError, ValueError, Refused):
        return {}
    return settings if isinstance(settings, dict) else {}


def _norms(rows: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, "K"]:
    return np.linalg.norm(rows, axis=1)


def _nearest_words(learned: Embedding, keys: InspectKeys) -> list[str]:
    """For each vector the words of the vocabulary nearest to it, by cosine."""
    # Imported late: a file alone is shown without JAX.
    from ti_flax.models import base_model
    from ti_flax.text.nearest_words import nearest_words
    from ti_flax.text.tokenizer import load_tokenizer

    model = base_model.open_model(keys.model, keys.revision)
    widths = {each.name: each.width for each in model.family.text_encoders}
    find.check_fits(learned, widths, "model", keys.file)
    lines = []
    for encoder in model.family.text_encoders:
        tokenizer = load_tokenizer(model.tokenizer(encoder), encoder.pieces)
        table = np.asarray(encoder.table(model.load(encoder.name)))
        median = np.median(_norms(table))
        lines.append(f"norm of the model's words: median {median:.3f}")
        found = nearest_words(tokenizer, table, learned.rows[encoder.name])
        for number, near in enumerate(found, 1):
            words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in near)
            lines.append(f"nearest to vector {number}: {words}")
    return lines
