"""What a key of a run is, said on the key: `learning_rate: Annotated[Number, TRAVELS]`.

Each key has exactly one nature. `checkpoints.identity` reads which keys a resumed run
must share with its checkpoint, `publishing.provenance` which go with the rows.
"""

import enum
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Nature(enum.Enum):
    """Whether a resumed run may change a key, and whether the rows tell its value."""

    # Shapes the rows.
    TRAVELS = "kept on resume; goes into the provenance"
    # The word itself, which every format writes in its own place.
    KEPT = "kept on resume; not in the provenance"
    # Shapes the rows, but something else says whether it fits: a fingerprint, the
    # product of the batch with the accumulation, or the checkpoint's number.
    NOTED = "free on resume; goes into the provenance"
    # Changes nothing but rounding, or is a path: what lies there has a fingerprint.
    FREE = "free on resume; not in the provenance"


TRAVELS, KEPT, NOTED, FREE = Nature


def of_field(field: FieldInfo) -> Nature:
    (nature,) = (mark for mark in field.metadata if isinstance(mark, Nature))
    return nature


def keys_of(settings: type[BaseModel], natures: Collection[Nature]) -> dict[str, Any]:
    """Keys of one of the natures, in their order, each with its default."""
    return {
        key: field.default
        for key, field in settings.model_fields.items()
        if of_field(field) in natures
    }
