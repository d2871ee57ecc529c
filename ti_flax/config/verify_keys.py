"""Every key of `python -m ti_flax.verify`."""

from pydantic import BaseModel, Field

from ti_flax.config.checkpoint_keys import CheckpointKeys
from ti_flax.config.fields import (
    Count,
    Integer,
    NameOrPath,
    OptionalName,
    Revision,
    Settings,
    Variant,
)

USAGE = "DIR_OR_FILE --model NAME [--prompt TEXT]"


class ComparisonKeys(Settings):
    """What to compare."""

    source: NameOrPath = Field(
        description="embedding file, folder that a run wrote, or Hub id"
    )
    model: NameOrPath = Field(
        description="Stable Diffusion 1.x, 2.x or SDXL: a folder in diffusers' layout, "
        "a Hub repository, or one file (.safetensors, .ckpt)"
    )
    revision: Revision = None
    variant: Variant = None
    prompt: OptionalName = Field(
        None, description="also compare a picture of this prompt; none: no picture"
    )
    seed: Integer = Field(42, ge=0, lt=2**32, description="seed of the picture")
    steps: Count = Field(25, le=10**4, description="steps from noise to picture")


# pydantic lists the fields of the last base first.
class VerifyKeys(CheckpointKeys, ComparisonKeys):
    """All keys, checked and frozen."""


GROUPS: dict[str, type[BaseModel]] = {
    "Comparison": ComparisonKeys,
    "Checkpoint": CheckpointKeys,
}
