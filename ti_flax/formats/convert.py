"""Converts embeddings for another program."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from pydantic import BaseModel, Field

from ti_flax.config import folder_names, validation
from ti_flax.config.fields import FilePath, NamesOrPaths, OptionalName, Settings
from ti_flax.config.signatures import ConvertSettings, with_keys_of
from ti_flax.formats import find, programs, registry
from ti_flax.formats.checks import checked_token
from ti_flax.runtime import errors

_log = logging.getLogger("ti_flax.convert")

_FORMATS = registry.FORMATS
_PROGRAMS = programs.NAMED_BY_FILE
USAGE = "IN ... --to FORMAT --output OUT"


class ConvertKeys(Settings):
    """What to convert into what."""

    source: NamesOrPaths = Field(
        min_length=1,
        description="embedding files, folders that runs wrote, folders of embeddings, "
        "or Hub ids",
    )
    to: Literal[(*_FORMATS, *_PROGRAMS)] = Field(
        description="; ".join(
            f"{name} for {layout.program} ({', '.join(layout.suffixes)})"
            for name, layout in sorted(_FORMATS.items())
        )
        + f"; {', '.join(_PROGRAMS)}: the format for that program, in a file of the "
        "word's name"
    )
    output: FilePath = Field(
        description="file to write, or a folder that gets one of the usual name, of "
        "several words each by its name"
    )
    token: OptionalName = Field(
        None,
        description="the word: which one of several in the file, or a new name for the "
        "only one",
    )
    json_: bool = Field(False, description="say what was written as JSON, on stdout")


GROUPS: dict[str, type[BaseModel]] = {"Conversion": ConvertKeys}


class Conversion(NamedTuple):
    """What was made of a file."""

    source: str
    format: str
    to: str
    token: str
    files: list[Path]


@with_keys_of(ConvertKeys, ConvertSettings)
def convert_embedding(**settings: Unpack[ConvertSettings]) -> list[Path]:
    """Writes embeddings in another program's format; returns the files written.

    As in `convert_embedding(source="output/cat", to="kohya", output="new.pt")`; the
    rows come out bit for bit in float32, with their provenance where the format has
    a place for it. Several sources, or a folder of files, go into a folder, each
    under its word's name.

    Raises:
        UserError: what to mend, a line for each file; the others are written.
    """
    done, wrong = _conversions(settings)
    errors.raise_all(wrong)
    return [path for each in done for path in each.files]


def print_conversions(**settings: Unpack[ConvertSettings]) -> None:
    """The same for the command: says what was written, with `json_` on stdout."""
    done, wrong = _conversions(settings)
    if settings.get("json_"):
        told = [each._asdict() | {"files": [*map(str, each.files)]} for each in done]
        print(json.dumps(told, indent=1))
    errors.raise_all(wrong)


def _conversions(
    settings: ConvertSettings,
) -> tuple[list[Conversion], list[errors.UserError]]:
    checked = validation.validate(ConvertKeys, settings, "with --key value")
    files, wrong = find.find_all(checked.source)
    done = []
    # Of one word the usual name is left, which diffusers looks for.
    named = checked.to in _PROGRAMS or len(files) + len(wrong) > 1
    unique = folder_names.Numbered()
    if len(files) > 1:
        _check_place_of_several(checked)
    for file in files:
        try:
            done.append(_convert(file, checked, unique if named else None))
        except errors.UserError as error:
            wrong.append(error)
    return done, wrong


def _check_place_of_several(checked: ConvertKeys) -> None:
    if checked.output.suffix and not checked.output.is_dir():
        raise errors.UserError(
            f"output: expected a folder for several files, found {checked.output}; "
            "give one"
        )
    if checked.to == "replicate":
        raise errors.UserError(
            "to: expected one word for replicate, whose folder names it, found several "
            "files; convert each into a folder of its own"
        )


def _convert(
    file: Path, checked: ConvertKeys, unique: Callable[[str], str] | None
) -> Conversion:
    found = registry.read(file, checked.token)
    embedding = found.embedding
    if checked.token is not None:
        token = checked_token("token:", checked.token)
        embedding = embedding._replace(token=token)
    name = checked.to
    if name in _PROGRAMS:
        name = programs.format_for(name, embedding)
    output = checked.output
    if unique is not None and (output.is_dir() or not output.suffix):
        suffix = next(iter(_FORMATS[name].suffixes))
        output = output / f"{unique(programs.file_name(embedding.token))}{suffix}"
    output = registry.target(output, name)
    if output.exists() and os.path.samefile(output, file):
        raise errors.UserError(
            f"output: {output} is the file that is converted; choose another"
        )
    written = registry.write(output, name, embedding)
    for path in written:
        _log.info("wrote %s (%s, from %s)", path, name, found.format)
    if checked.to in _PROGRAMS:
        called = _PROGRAMS[checked.to].format(output.stem)
        _log.info("in prompts of %s the word is %s", checked.to, called)
    return Conversion(str(file), found.format, name, embedding.token, written)
