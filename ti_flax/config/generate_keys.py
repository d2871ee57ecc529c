"""Every key of `python -m ti_flax.generate`: its type, default, unit and limits."""

from typing import Literal

from pydantic import BaseModel, Field

from ti_flax.config.checkpoint_keys import CheckpointKeys
from ti_flax.config.fields import (
    LARGEST_BATCH,
    LARGEST_SIDE,
    AttentionName,
    Count,
    FilePath,
    Integer,
    NameOrPath,
    Number,
    OptionalFilePath,
    OptionalInteger,
    Precision,
    Revision,
    Settings,
    Texts,
    Variant,
)


class ModelKeys(Settings):
    """The frozen model, and the words it has learned."""

    model: NameOrPath = Field(
        description="Stable Diffusion 1.x or 2.x, or SDXL: a folder in diffusers' "
        "layout, a Hub repository, or one file (.safetensors, .ckpt)"
    )
    revision: Revision = None
    variant: Variant = None
    mixed_precision: Precision = "auto"
    attention: AttentionName = "auto"
    embedding: Texts = Field(
        (),
        description="embedding files, or folders that a run wrote; WORD=FILE gives the "
        "learned word another name",
    )


class PictureKeys(Settings):
    """What to make."""

    prompt: Texts = Field(
        min_length=1, description="what to see; num_images of each prompt are made"
    )
    negative_prompt: str = Field("", description="what not to see, in every picture")
    num_images: Count = Field(1, le=1000, description="pictures of each prompt")
    seed: Integer = Field(
        42,
        ge=0,
        lt=2**32,
        description="seed of the first picture of each prompt; the next has the next",
    )
    width: OptionalInteger = Field(
        None,
        ge=1,
        le=LARGEST_SIDE,
        description="in pixels; none: as the UNet was trained",
    )
    height: OptionalInteger = Field(
        None,
        ge=1,
        le=LARGEST_SIDE,
        description="in pixels; none: as the UNet was trained",
    )
    steps: Count = Field(25, le=10**4, description="steps from noise to picture")
    guidance_scale: Number = Field(
        7.5,
        ge=0,
        le=1000,
        description="weight of the prompt; up to 1 there is no guidance",
    )
    scheduler: Literal["ddim", "dpmpp_2m", "euler", "lcm", "pndm"] | None = Field(
        None, description="none: the model's own"
    )


class OutputKeys(Settings):
    """Where pictures go, and how many are made at once."""

    output: OptionalFilePath = Field(
        None, description="folder for the pictures and a grid of them, as PNG"
    )
    batch_size: OptionalInteger = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description="pictures made at once over ALL devices together, rounded up to a "
        "multiple of the devices; none: one for each device",
    )


# pydantic lists the fields of the last base first.
class GenerateKeys(OutputKeys, PictureKeys, CheckpointKeys, ModelKeys):
    """All keys, checked and frozen."""


class CommandOutputKeys(OutputKeys):
    """The command writes its pictures, which the function may only return."""

    output: FilePath = Field(
        description="folder for the pictures and a grid of them, as PNG"
    )


class CommandKeys(CommandOutputKeys, PictureKeys, CheckpointKeys, ModelKeys):
    """All keys of the command, checked and frozen."""


# Title in --help -> its keys.
GROUPS: dict[str, type[BaseModel]] = {
    "Model": ModelKeys,
    "Checkpoint": CheckpointKeys,
    "Picture": PictureKeys,
    "Output": CommandOutputKeys,
}
