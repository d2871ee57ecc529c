"""Converts an embedding for another program."""

import logging
import os
from pathlib import Path
from typing import Literal, Unpack

from pydantic import BaseModel, Field

from ti_flax.config import validation
from ti_flax.config.fields import FilePath, NameOrPath, OptionalName, Settings
from ti_flax.config.signatures import ConvertSettings, with_keys_of
from ti_flax.formats import find, registry
from ti_flax.formats.checks import checked_token
from ti_flax.runtime import errors

_log = logging.getLogger("ti_flax.convert")

_FORMATS = registry.FORMATS
USAGE = "IN --to FORMAT --output OUT"


class ConvertKeys(Settings):
    """What to convert into what."""

    source: NameOrPath = Field(
        description="embedding file, folder that a run wrote, or Hub id"
    )
    to: Literal[tuple(_FORMATS)] = Field(
        description="; ".join(
            f"{name} for {layout.program} ({', '.join(layout.suffixes)})"
            for name, layout in sorted(_FORMATS.items())
        )
    )
    output: FilePath = Field(
        description="file to write, or a folder that gets one of the usual name"
    )
    token: OptionalName = Field(
        None,
        description="the word: which one of several in the file, or a new name for the "
        "only one",
    )


GROUPS: dict[str, type[BaseModel]] = {"Conversion": ConvertKeys}


@with_keys_of(ConvertKeys, ConvertSettings)
def convert_embedding(**settings: Unpack[ConvertSettings]) -> list[Path]:
    """Writes an embedding in another program's format; returns the files written.

    As in `convert_embedding(source="output/cat", to="kohya", output="new.pt")`; the
    rows come out bit for bit in float32, with their provenance where the format has
    a place for it.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(ConvertKeys, settings, "with --key value")
    file = find.find_file(checked.source)
    found = registry.read(file, checked.token)
    embedding = found.embedding
    if checked.token is not None:
        token = checked_token("token:", checked.token)
        embedding = embedding._replace(token=token)
    output = registry.target(checked.output, checked.to)
    if output.exists() and os.path.samefile(output, file):
        raise errors.UserError(
            f"output: {output} is the file that is converted; choose another"
        )
    written = registry.write(checked.output, checked.to, embedding)
    for path in written:
        _log.info("wrote %s (%s, from %s)", path, checked.to, found.format)
    return written
