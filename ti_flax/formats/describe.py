"""Says what embedding files hold, or a model in one file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel, Field

from ti_flax.config import validation
from ti_flax.config.fields import (
    NamesOrPaths,
    OptionalName,
    OptionalNameOrPath,
    Revision,
    Settings,
)
from ti_flax.config.signatures import InspectSettings, with_keys_of
from ti_flax.formats import bounds, describe_model, find, programs, registry
from ti_flax.formats.vocabulary import Vocabulary
from ti_flax.pickles.refused import Refused
from ti_flax.runtime.errors import UserError, raise_all
from ti_flax.text.embedding import Embedding

USAGE = "FILE ... [--model NAME]"


class InspectKeys(Settings):
    """What to look at."""

    file: NamesOrPaths = Field(
        min_length=1,
        description="embedding files, folders that runs wrote, folders of embeddings, "
        "or Hub ids; or models in one file",
    )
    model: OptionalNameOrPath = Field(
        None,
        description="base model, a folder or Hub id: shows how long each vector is "
        "beside a word of its vocabulary, and the words that are nearest",
    )
    revision: Revision = None
    token: OptionalName = Field(None, description="which word, of a file with several")
    json_: bool = Field(False, description="as JSON, a list with an object for a file")


GROUPS: dict[str, type[BaseModel]] = {"File": InspectKeys}


@with_keys_of(InspectKeys, InspectSettings)
def describe_embedding(**settings: Unpack[InspectSettings]) -> str:
    """What files hold, in lines of `fact: value`; an empty line between two files.

    As in `describe_embedding(file="cat.pt", model="sd-1-5")`: format, token, vectors,
    width, base models that fit, programs that load it, norms, with a model their
    lengths beside a word's and the nearest words by cosine, and provenance. Of a model
    in one file (.safetensors, .ckpt): family, parts, what it predicts and what tells
    so, metadata. With `json_` all of it as JSON (docs/formats.md).

    Raises:
        UserError: what to mend, a line for each file.
    """
    checked = validation.validate(InspectKeys, settings, "with --key value")
    told = [*_described(checked)]
    raise_all([each for each in told if isinstance(each, UserError)])
    return _text(checked, told)


def print_descriptions(**settings: Unpack[InspectSettings]) -> None:
    """The same for the command: what is right is printed, whatever else is wrong."""
    checked = validation.validate(InspectKeys, settings, "with --key value")
    told = [*_described(checked)]
    if text := _text(checked, told):
        print(text)
    raise_all([each for each in told if isinstance(each, UserError)])


Facts = dict[str, Any]


def _text(keys: InspectKeys, told: list[Facts | UserError]) -> str:
    if keys.json_:
        shown = [
            {"kind": "error", "error": str(each)}
            if isinstance(each, UserError)
            else each
            for each in told
        ]
        return json.dumps(shown, indent=1)
    facts = [each for each in told if not isinstance(each, UserError)]
    return "\n\n".join("\n".join(_lines(each)) for each in facts)


def _described(keys: InspectKeys) -> Iterator[Facts | UserError]:
    """What each file holds, or what is wrong with it."""
    vocabulary = None
    for name in keys.file:
        path = Path(name)
        try:
            if describe_model.is_model(path):
                yield _of_model(path)
                continue
            files = find.find_files(name)
        except UserError as error:
            yield error
            continue
        if keys.model is not None and vocabulary is None:
            vocabulary = Vocabulary(keys.model, keys.revision)
        for file in files:
            try:
                yield _of_embedding(file, keys.token, vocabulary)
            except UserError as error:
                yield error


def _of_model(path: Path) -> Facts:
    facts = [line.partition(": ") for line in describe_model.describe(path)]
    # Where there are more than are shown, the last line is no fact.
    return {
        "kind": "model",
        "facts": {name: value if sep else None for name, sep, value in facts},
    }


def _of_embedding(
    file: Path, token: str | None, vocabulary: Vocabulary | None
) -> Facts:
    found = registry.read(file, token)
    learned = found.embedding
    encoders = {
        encoder: {
            "width": rows.shape[1],
            "norms": [round(float(norm), 6) for norm in _norms(rows)],
        }
        for encoder, rows in learned.rows.items()
    }
    if vocabulary is not None:
        for encoder, compared in vocabulary.compare(learned, file).items():
            encoders[encoder] |= compared
    return {
        "kind": "embedding",
        "file": str(found.file),
        "format": found.format,
        "token": learned.token,
        "vectors": learned.num_vectors,
        "fits": learned.family,
        "programs": [*programs.readers(found.format, learned)],
        "encoders": encoders,
        "metadata": {key: str(value) for key, value in found.metadata.items()},
        "settings": _settings(learned),
    }


def _lines(facts: Facts) -> list[str]:
    if facts["kind"] == "model":
        return [
            name if value is None else f"{name}: {value}"
            for name, value in facts["facts"].items()
        ]
    encoders = facts["encoders"].values()
    norms = [", ".join(f"{norm:.3f}" for norm in each["norms"]) for each in encoders]
    lines = [
        f"file: {facts['file']}",
        f"format: {facts['format']} ({registry.FORMATS[facts['format']].program})",
        f"token: {facts['token']}",
        f"vectors: {facts['vectors']}",
        f"width: {' and '.join(str(each['width']) for each in encoders)}",
        f"fits: {facts['fits']}",
        f"loads in: {', '.join(facts['programs']) or 'none that is known'}",
        f"norms: {'; '.join(norms)}",
    ]
    for each in encoders:
        lines += _compared_lines(each)
    told = {**facts["metadata"], **facts["settings"]}
    return lines + describe_model.fact_lines(told)


def _compared_lines(encoder: Mapping[str, Any]) -> Iterator[str]:
    """The verdict beside the model's vocabulary, where there is one."""
    if "vocabulary" not in encoder:
        return
    median, high = (
        encoder["vocabulary"]["median"],
        encoder["vocabulary"]["percentile_99"],
    )
    yield f"norm of the model's words: median {median:.3f}, 99 % below {high:.3f}"
    for number, norm in enumerate(encoder["norms"], 1):
        told = "as long as a word's"
        if norm > high:
            told = "longer than 99 % of the words: it may drown the others of a prompt"
        yield f"length of vector {number}: {norm / median:.2f} of the median, {told}"
    for number, near in enumerate(encoder["nearest"], 1):
        words = ", ".join(f"{each['word']} {each['cosine']:.2f}" for each in near)
        yield f"nearest to vector {number}: {words}"


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
