"""What is cut out of a picture: a square, a bucket, several crops of either."""

import operator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.data import buckets
from ti_flax.data.buckets import Cropping
from ti_flax.data.decode import SkippedError


class Cut(NamedTuple):
    """How one picture is cut: resized as a whole, then crops of one size.

    Lengths are in pixels. `box` (left, top, right, bottom), where there is one, is cut
    out of the original and resized in place of the whole: of a single centred square
    that costs less, and no pixel outside the square takes part.
    """

    # Of the original and of the whole, resized as the crops are: (width, height).
    original: buckets.Size
    resized: buckets.Size
    # (top, left) of each crop in the resized picture, and the size of every crop.
    corners: tuple[tuple[int, int], ...]
    size: buckets.Size
    box: tuple[int, int, int, int] | None = None

    def crops(
        self,
        picture: Image.Image,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> list[UInt8[np.ndarray, "H W *channels"]]:
        """The crops of a picture or of its mask; they share memory.

        Pillow's bicubic filter widens with the reduction, so it does not alias, and it
        overshoots half as much as Lanczos at hard edges (an object on white), where a
        halo would be learned with the concept. It is also what diffusers trains with.
        """
        if self.box is not None:
            part = picture.crop(self.box).resize(self.size, resample)
            return [np.asarray(part)]
        whole = np.asarray(picture.resize(self.resized, resample))
        width, height = self.size
        return [
            whole[top : top + height, left : left + width] for top, left in self.corners
        ]

    @property
    def enlarged(self) -> bool:
        """Whether the picture is made larger along one side or both."""
        return any(map(operator.gt, self.resized, self.original))

    def sizes(self) -> list[list[list[int]]]:
        """[C, 2, 6] in pixels, of each crop and of its mirror image.

        (height, width) as in the file, (top, left) of the crop in the resized picture,
        (height, width) of the crop.
        """
        (width, height), right_end = self.original, self.resized[0] - self.size[0]
        return [
            [
                [height, width, top, x, *self.size[::-1]]
                for x in (left, right_end - left)
            ]
            for top, left in self.corners
        ]

    @property
    def middle(self) -> int:
        """The number of the crop that stands for the picture where one is shown."""
        return len(self.corners) // 2


def cut(width: int, height: int, rules: Cropping) -> Cut:
    """How a picture of this size is cut.

    Raises:
        SkippedError: it is too small for `bucket_no_upscale`.
    """
    side = rules.resolution
    if rules.enable_bucket:
        fit = buckets.choose(width, height, rules)
        if fit is None:
            raise SkippedError(
                f"{width}x{height} px, less than bucket_reso_steps "
                f"{rules.bucket_reso_steps}, and bucket_no_upscale"
            )
        return _around((width, height), fit.resized, fit.bucket, rules)
    if rules.random_crop:
        return covered(width, height, (side, side), rules)
    if not rules.center_crop:
        return Cut((width, height), (side, side), ((0, 0),), (side, side))
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    resized = round(width * side / edge), round(height * side / edge)
    corner = (resized[1] - side) // 2, (resized[0] - side) // 2
    box = left, top, left + edge, top + edge
    return Cut((width, height), resized, (corner,), (side, side), box)


def covered(width: int, height: int, size: buckets.Size, rules: Cropping) -> Cut:
    """How a picture is cut to a given size, of which it covers all."""
    resized = buckets.covering(width, height, size)
    return _around((width, height), resized, size, rules)


def _around(
    original: buckets.Size,
    resized: buckets.Size,
    size: buckets.Size,
    rules: Cropping,
) -> Cut:
    """The middle crop; with `random_crop` evenly spread ones, from end to end.

    Evenly spread crops stand for any crop drawn at random, and leave no part of a
    picture out by chance.
    """
    across, down = (whole - part for whole, part in zip(resized, size, strict=True))
    count = rules.crop_variants if rules.random_crop else 1
    places = np.linspace(0, 1, count) if count > 1 else [0.5]
    # Whole pixels, and of a half the lower: as kohya cuts the middle.
    corners = tuple((int(down * at), int(across * at)) for at in places)
    return Cut(original, resized, corners, size)
