"""The square that is cut out of a picture, or into which it is squashed."""

from PIL import Image


def make_square(
    picture: Image.Image,
    side: int,
    center_crop: bool,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Crops or squashes, then resizes.

    Pillow's bicubic filter widens with the reduction, so it does not alias, and it
    overshoots half as much as Lanczos at hard edges (an object on white), where a halo
    would be learned with the concept. It is also what diffusers trains with.
    """
    if center_crop:
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        picture = picture.crop((left, top, left + edge, top + edge))
    return picture.resize((side, side), resample)


def sizes(width: int, height: int, side: int, center_crop: bool) -> list[list[int]]:
    """`Pictures.sizes` of one picture; one that is squashed is not cropped."""
    top = left = mirrored = 0
    if center_crop:
        edge = min(width, height)
        resized = round(height * side / edge), round(width * side / edge)
        top, left = ((length - side) // 2 for length in resized)
        mirrored = resized[1] - side - left
    return [[height, width, top, x, side, side] for x in (left, mirrored)]
