"""Every key of `python -m ti_flax.random_model`."""

from typing import Literal

from pydantic import BaseModel, Field

from ti_flax.config.fields import FilePath, Integer, Settings


class RandomModelKeys(Settings):
    """What to write, and where."""

    shape: Literal["sd15", "sd21", "sdxl", "tiny", "tiny_sdxl"] = Field(
        description="the model to resemble: sd15, sd21, sdxl, tiny or tiny_sdxl"
    )
    folder: FilePath = Field(description="where to write it")
    seed: Integer = Field(0, ge=0, lt=2**32, description="start of the random weights")


GROUPS: dict[str, type[BaseModel]] = {"Model": RandomModelKeys}
