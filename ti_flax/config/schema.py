"""The JSON schema of a `--config` file: what editors complete and check it with.

It says of each key what help says, its type and its limits; not what several keys must
be together. schema.json is the text, for those who have the package alone.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ti_flax.config import dataset_config, foreign_keys
from ti_flax.config.concepts import ALL_GROUPS
from ti_flax.config.foreign_names import Foreign, Ignored, Refused
from ti_flax.config.many_keys import OWN, ManyKeys

# Draft 7 is what editors read; nothing here has another meaning in later ones.
_DRAFT = "http://json-schema.org/draft-07/schema#"

_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
# `key: [value, ...]`, or as on the command line.
_SWEEP = {
    "type": ["object", "array", "string"],
    "propertyNames": {"enum": sorted(OWN)},
    "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True},
    "items": {"type": "string"},
}


def schema() -> dict[str, Any]:
    """The schema of the keys, in the order of `--help`.

    None is required: the command line may give it.
    """
    properties: dict[str, Any] = {}
    for group in ALL_GROUPS.values():
        properties |= _properties(group)
    sweep = ManyKeys.model_fields["sweep"].description
    properties["sweep"] = {"description": sweep, **_SWEEP}
    properties[dataset_config.KEY] = {
        "description": dataset_config.ABOUT,
        "type": ["string", "null"],
    }
    # Not suggested, and marked where they stand.
    for name, foreign in foreign_keys.NAMES.items():
        if not isinstance(foreign, Refused):
            properties[name] = {"deprecationMessage": _told(foreign)}
    return {
        "$schema": _DRAFT,
        "title": "Configuration of a run of ti_flax",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _told(foreign: Foreign) -> str:
    if isinstance(foreign, Ignored):
        return f"is ignored: {foreign.reason}"
    return "is another trainer's name: docs/coming-from.md has ours"


def text() -> str:
    """The schema as JSON."""
    return json.dumps(schema(), indent=2, ensure_ascii=False)


def _properties(group: type[BaseModel]) -> dict[str, Any]:
    """The schema of each key."""
    return {
        key: _plain(found)
        for key, found in group.model_json_schema()["properties"].items()
    }


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """In the words of JSON Schema, without a title, the key in other letters.

    A second limit on a type that has one, pydantic leaves in its own words.
    """
    named = {_LIMITS.get(word, word): value for word, value in found.items()}
    return {word: named[word] for word in sorted(named) if word != "title"}
