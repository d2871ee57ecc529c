"""What a container file holds, before a format makes sense of it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ti_flax.text.embedding import NOTHING

Kind = Literal["safetensors", "torch", "npy", "png"]


class Content(NamedTuple):
    """What a file of a kind holds, and the texts that safetensors keeps beside it."""

    kind: Kind
    value: Any
    metadata: Mapping[str, str] = NOTHING
