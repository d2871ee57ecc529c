"""Masks of pictures: white where the concept is."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from ti_flax.data.crop import make_square
from ti_flax.data.decode import ENDINGS, SkippedError, read_alpha, read_picture
from ti_flax.data.siblings import caseless_stem, siblings
from ti_flax.runtime.errors import UserError, listed, one_line

# OneTrainer's name of the mask of NAME.jpg: NAME-masklabel.png.
_LABEL = "-masklabel"


def masks_among(names: Collection[str]) -> set[str]:
    """Those of a folder's files that are masks of its pictures."""
    stems = {caseless_stem(name) for name in names if name.lower().endswith(ENDINGS)}
    return {
        name
        for name in names
        if name.lower().endswith(f"{_LABEL}.png")
        and caseless_stem(name)[: -len(_LABEL)] in stems
    }


def beside(folder: Path, pictures: Sequence[str]) -> dict[str, Path]:
    """The file NAME-masklabel.png of each picture that has one."""
    places = {picture: folder / picture for picture in pictures}
    return _first_of(places, ".png", _LABEL)


def in_folder(masks: Path, pictures: Sequence[str]) -> dict[str, Path]:
    """The file of each picture's name, in whatever format, in a folder of masks.

    The mask of a picture in a sub-folder lies in one of the same name, or above.

    Raises:
        UserError: there is no such folder.
    """
    if not masks.is_dir():
        raise UserError(
            f"conditioning_data_dir: expected a folder of masks, found "
            f"{one_line(str(masks))}, which is none; give one that is there"
        )
    places = {picture: masks / picture for picture in pictures}
    above = {picture: masks / PurePosixPath(picture).name for picture in pictures}
    return _first_of(above, ENDINGS) | _first_of(places, ENDINGS)


def read_masks(
    files: Mapping[str, Path],
    pictures: Sequence[str],
    sizes: Int32[np.ndarray, "N 2 6"],
    side: int,
    center_crop: bool,
    alpha: bool = False,
) -> UInt8[np.ndarray, "N H W"]:
    """The mask of each picture, cropped as it is; white where a picture has none.

    Args:
        files: where the mask of a picture is; with `alpha`, the picture itself.
        pictures: their names, and `sizes` as `Pictures` has them.
        side: of the square result, px; by area where that is smaller.
        center_crop: as the pictures were cropped.
        alpha: take the alpha channel, and what has none as all white.

    Raises:
        UserError: a mask cannot be read, is of another size or is all black.
    """
    masks = np.full((len(pictures), side, side), 255, np.uint8)
    for index, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        if picture not in files:
            continue
        try:
            mask = read_alpha(files[picture]) if alpha else _grey(files[picture])
        except SkippedError as reason:
            raise UserError(
                f"mask of {one_line(picture)}: {reason} ({files[picture]}); mend it, "
                "or leave masked_loss out"
            ) from reason
        if mask is None:
            continue
        height, width = (int(length) for length in size[0, :2])
        if mask.size != (width, height):
            raise UserError(
                f"mask of {one_line(picture)}: expected {width}x{height} px as the "
                f"picture has, found {mask.width}x{mask.height} ({files[picture]}); "
                "make it anew from the picture"
            )
        cut = make_square(mask, side, center_crop, Image.Resampling.BOX)
        masks[index] = np.asarray(cut)
        if not masks[index].any():
            raise UserError(
                f"mask of {one_line(picture)}: it is all black where the picture is "
                f"used ({files[picture]}); make white what is to be learned"
            )
    return masks


def without_mask(pictures: Sequence[str], masks: UInt8[np.ndarray, "N H W"]) -> str:
    """The pictures whose mask is all white, for a line; empty where there are none."""
    pairs = zip(pictures, masks, strict=True)
    return listed(name for name, mask in pairs if (mask == 255).all())


def loss_weights(
    masks: UInt8[np.ndarray, "N H W"],
    latent_side: int,
    flip: bool,
    unmasked_weight: float,
    normalize: bool,
) -> Float32[np.ndarray, "N F h w"]:
    """What the error of each latent counts, of a picture and of its mirror image.

    The mask by area, at least `unmasked_weight` everywhere; with `normalize` divided by
    its mean (OneTrainer: `unmasked_weight`, `normalize_masked_area_loss`).
    """
    count, side = masks.shape[:2]
    patch = side // latent_side
    patches = masks.reshape(count, latent_side, patch, latent_side, patch)
    weights = patches.mean((2, 4)) / 255.0
    weights = np.clip(weights, unmasked_weight, 1.0)
    if normalize:
        weights /= weights.mean((1, 2), keepdims=True)
    views = [weights, weights[:, :, ::-1]] if flip else [weights]
    return np.stack(views, axis=1).astype(np.float32)


def _grey(path: Path) -> Image.Image:
    picture, _ = read_picture(path)
    return picture.convert("L")


def _first_of(
    places: Mapping[str, Path], suffixes: str | tuple[str, ...], ending: str = ""
) -> dict[str, Path]:
    found = siblings(places, suffixes, caseless_stem, ending)
    return {picture: files[0] for picture, files in found.items()}
