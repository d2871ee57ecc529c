"""Aspect buckets: the sizes that tall and wide pictures are cut to, as kohya's.

The sizes and the choice are those of sd-scripts' `make_bucket_resolutions` and
`BucketManager.select_bucket`. All sizes are (width, height) in pixels.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

from ti_flax.runtime.errors import UserError

Size = tuple[int, int]


class Cropping(NamedTuple):
    """The keys that say how pictures are cut, by their names.

    The sides of buckets are by default at least half and at most twice the resolution.
    """

    resolution: int
    center_crop: bool = True
    random_crop: bool = False
    crop_variants: int = 4
    enable_bucket: bool = False
    min_bucket_reso: int | None = None
    max_bucket_reso: int | None = None
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    max_buckets: int = 4

    @property
    def area(self) -> int:
        """Pixels that a bucket has at most."""
        return self.resolution**2


class Fit(NamedTuple):
    """The bucket of a picture, and what the picture is resized to before it is cut."""

    bucket: Size
    resized: Size


def sizes(rules: Cropping) -> list[Size]:
    """Every bucket: sides in whole steps, at most the area, and the square.

    The least side is rounded down to a whole step, the greatest up.

    Raises:
        UserError: a step is longer than the resolution, so that there is none.
    """
    step = rules.bucket_reso_steps
    least = rules.min_bucket_reso or rules.resolution // 2
    least = max(step, least // step * step)
    most = -(-(rules.max_bucket_reso or 2 * rules.resolution) // step) * step
    square = rules.resolution // step * step
    found = {(square, square)} if square else set()
    for width in range(least, most + 1, step):
        height = min(most, rules.area // width // step * step)
        if height >= least:
            found |= {(width, height), (height, width)}
    if not found:
        raise UserError(
            f"bucket_reso_steps: expected at most the resolution, {rules.resolution}, "
            f"found {step}; set bucket_reso_steps to 8, or a larger resolution"
        )
    return sorted(found)


def choose(width: int, height: int, rules: Cropping) -> Fit | None:
    """The bucket of the nearest aspect ratio; None: the picture is below one step.

    With `bucket_no_upscale` a picture is only ever made smaller, to the area, and cut
    to whole steps.
    """
    if not rules.bucket_no_upscale:
        ratio = width / height
        bucket = min(sizes(rules), key=lambda size: abs(size[0] / size[1] - ratio))
        return Fit(bucket, covering(width, height, bucket))
    resized = width, height
    if width * height > rules.area:
        resized = _reduced(width, height, rules)
    step = rules.bucket_reso_steps
    across, down = (length // step * step for length in resized)
    return Fit((across, down), resized) if across and down else None


def covering(width: int, height: int, bucket: Size) -> Size:
    """The least size of a picture, proportions kept, that a bucket fits into."""
    scale = max(bucket[0] / width, bucket[1] / height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def _reduced(width: int, height: int, rules: Cropping) -> Size:
    """At most about the area, one side in whole steps: the one that distorts less."""
    ratio = width / height

    def whole(length: float) -> int:
        step = rules.bucket_reso_steps
        return max(step, int(length + 0.5) - int(length + 0.5) % step)

    across = whole(math.sqrt(rules.area * ratio))
    down = whole(math.sqrt(rules.area / ratio))
    by_width = abs(across / whole(across / ratio) - ratio)
    by_height = abs(whole(down * ratio) / down - ratio)
    if by_width < by_height:
        return across, int(across / ratio + 0.5)
    return int(down * ratio + 0.5), down


def merged(
    chosen: Sequence[Size], originals: Sequence[Size], rules: Cropping
) -> dict[int, Size]:
    """Where pictures go instead, so that `max_buckets` buckets are left.

    Args:
        chosen: the bucket of each picture.
        originals: the size of each picture.
        rules: `max_buckets` and `bucket_no_upscale` count.

    Returns:
        The new bucket of each picture whose bucket is given up, by the picture's
        number. That of the fewest pictures is given up first, for the one of the
        nearest aspect ratio, by its logarithm; with `bucket_no_upscale` each picture
        goes to the nearest that it covers without being enlarged, where there is one.
    """
    left, moved = [*chosen], {}
    while len(counts := collections.Counter(left)) > rules.max_buckets:
        least = min(counts, key=lambda size: (counts[size], size))
        nearest = sorted(
            counts.keys() - {least},
            key=lambda size: (abs(_log_ratio(size) - _log_ratio(least)), size),
        )
        for number, bucket in enumerate(left):
            if bucket == least:
                left[number] = moved[number] = (
                    _first_covered(originals[number], nearest)
                    if rules.bucket_no_upscale
                    else nearest[0]
                )
    return moved


def _first_covered(picture: Size, ordered: Sequence[Size]) -> Size:
    """The first bucket that is nowhere larger than the picture, or else the first."""
    covered = (
        bucket
        for bucket in ordered
        if bucket[0] <= picture[0] and bucket[1] <= picture[1]
    )
    return next(covered, ordered[0])


def _log_ratio(size: Size) -> float:
    return math.log(size[0] / size[1])
