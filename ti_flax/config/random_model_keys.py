"""Every key of `python -m ti_flax.random_model`."""

from typing import Literal

from pydantic import BaseModel, Field

from ti_flax.config.fields import FilePath, Integer, Settings

Shape = Literal["sd15", "sd21", "sdxl", "ldm", "tiny", "tiny_sdxl", "tiny_ldm"]


class RandomModelKeys(Settings):
    """What to write, and where."""

    shape: Shape = Field(
        description="the model to resemble: sd15, sd21, sdxl, ldm; or one as small as "
        "can be: tiny, tiny_sdxl, tiny_ldm"
    )
    folder: FilePath = Field(description="where to write it")
    seed: Integer = Field(0, ge=0, lt=2**32, description="start of the random weights")


GROUPS: dict[str, type[BaseModel]] = {"Model": RandomModelKeys}
