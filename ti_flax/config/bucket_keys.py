"""Keys of pictures that are no squares: aspect buckets, several crops."""

from typing import Annotated

from pydantic import Field, model_validator

from ti_flax.config.fields import (
    LARGEST_SIDE,
    Count,
    Integer,
    OptionalInteger,
    Settings,
)
from ti_flax.config.natures import TRAVELS


class BucketKeys(Settings):
    """What is cut out of a picture that is no square."""

    enable_bucket: Annotated[bool, TRAVELS] = Field(
        False,
        description="cut tall and wide pictures to sizes near their own aspect ratio, "
        "of about as many pixels as the square, in place of squares",
    )
    min_bucket_reso: Annotated[OptionalInteger, TRAVELS] = Field(
        None,
        ge=8,
        le=LARGEST_SIDE,
        description="least side of a bucket in pixels; none: half the resolution",
    )
    max_bucket_reso: Annotated[OptionalInteger, TRAVELS] = Field(
        None,
        ge=8,
        le=LARGEST_SIDE,
        description="greatest side of a bucket in pixels; none: twice the resolution",
    )
    bucket_reso_steps: Annotated[Count, TRAVELS] = Field(
        64,
        multiple_of=8,
        le=1024,
        description="pixels between the sides of buckets",
    )
    bucket_no_upscale: Annotated[bool, TRAVELS] = Field(
        False,
        description="make no picture larger: a small one gets a bucket of its own size",
    )
    max_buckets: Annotated[Count, TRAVELS] = Field(
        4,
        le=64,
        description="buckets to keep, of which each is compiled; the pictures of the "
        "smallest go to the nearest of the others",
    )
    random_crop: Annotated[bool, TRAVELS] = Field(
        False,
        description="learn from several crops of a picture, drawn at random, in place "
        "of the middle one",
    )
    crop_variants: Annotated[Integer, TRAVELS] = Field(
        4,
        ge=2,
        le=64,
        description="crops that random_crop draws from, evenly spread over a picture "
        "and encoded before training",
    )

    @model_validator(mode="after")
    def _sides_in_order(self) -> "BucketKeys":
        least, most = self.min_bucket_reso, self.max_bucket_reso
        if least is not None and most is not None and least > most:
            raise ValueError(
                f"expected min_bucket_reso <= max_bucket_reso, found {least} > {most}; "
                "lower the first or raise the second"
            )
        return self
