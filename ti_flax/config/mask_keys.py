"""Keys of the masks of pictures."""

from typing import Annotated

from pydantic import Field, model_validator

from ti_flax.config.fields import Number, OptionalFilePath, Settings
from ti_flax.config.natures import FREE, TRAVELS


class MaskKeys(Settings):
    """Where in a picture the concept is, and what the rest counts."""

    masked_loss: Annotated[bool, TRAVELS] = Field(
        False,
        description="learn where a picture's mask is white: NAME-masklabel.png beside "
        "NAME.jpg",
    )
    alpha_mask: Annotated[bool, TRAVELS] = Field(
        False, description="with masked_loss, the picture's alpha channel is its mask"
    )
    conditioning_data_dir: Annotated[OptionalFilePath, FREE] = Field(
        None,
        description="with masked_loss, folder of the masks, each with the name of its "
        "picture",
    )
    unmasked_weight: Annotated[Number, TRAVELS] = Field(
        0.1, ge=0, le=1, description="what the loss counts where a mask is black"
    )
    unmasked_probability: Annotated[Number, TRAVELS] = Field(
        0.1, ge=0, le=1, description="chance of an example to be learned without mask"
    )
    normalize_masked_area_loss: Annotated[bool, TRAVELS] = Field(
        False,
        description="divide the loss by what its mask counts on the mean, so that "
        "small subjects count as much as large ones",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "MaskKeys":
        asked = [
            name
            for name, given in (
                ("alpha_mask", self.alpha_mask),
                ("conditioning_data_dir", self.conditioning_data_dir is not None),
            )
            if given
        ]
        if asked and not self.masked_loss:
            raise ValueError(
                f"expected masked_loss true with {asked[0]}, found false; set it, or "
                f"leave {asked[0]} out"
            )
        if len(asked) > 1:
            raise ValueError(
                "expected alpha_mask or conditioning_data_dir, found both; remove one"
            )
        return self
