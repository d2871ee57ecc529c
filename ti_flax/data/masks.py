"""Masks of pictures: white where the concept is."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ti_flax.data.crop import Cut
from ti_flax.data.decode import ENDINGS, SkippedError, read_alpha, read_picture
from ti_flax.data.siblings import caseless_stem, siblings
from ti_flax.runtime.errors import UserError, listed, one_line

# Of one picture, in each of its crops.
Masks = UInt8[np.ndarray, "C _ _"]

# OneTrainer's name of the mask of NAME.jpg: NAME-masklabel.png.
_LABEL = "-masklabel"
NONE_FOUND = (
    "masked_loss: expected NAME-masklabel.png beside pictures NAME.jpg, a "
    "conditioning_data_dir with masks, or alpha_mask and transparent pictures, "
    "found no mask; make some, or leave masked_loss out"
)


class Source(NamedTuple):
    """The keys that say where masks are, by their names; else they are beside."""

    alpha_mask: bool = False
    conditioning_data_dir: Path | None = None

    @property
    def keys(self) -> list[str]:
        """Those that are given."""
        return [key for key, value in self._asdict().items() if value]


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


def files_of(source: Source, folder: Path, pictures: Sequence[str]) -> dict[str, Path]:
    """The file that holds a picture's mask, of those that have one; with `alpha_mask`
    each picture itself.

    Raises:
        UserError: there is no folder `conditioning_data_dir`.
    """
    if source.conditioning_data_dir is not None:
        return in_folder(source.conditioning_data_dir, pictures)
    if source.alpha_mask:
        return {picture: folder / picture for picture in pictures}
    return beside(folder, pictures)


def read_masks(
    files: Mapping[str, Path],
    pictures: Sequence[str],
    cuts: Sequence[Cut],
    alpha: bool = False,
) -> list[Masks]:
    """The mask of each picture, cut as it is; white where a picture has none.

    Args:
        files: where the mask of a picture is; with `alpha`, the picture itself.
        pictures: their names, and `cuts` how they were cut; the mask is resized by
            area where that is smaller.
        alpha: take the alpha channel, and what has none as all white.

    Raises:
        UserError: a mask cannot be read, is of another size or is all black.
    """
    return [
        _mask(files.get(picture), picture, cut, alpha)
        for picture, cut in zip(pictures, cuts, strict=True)
    ]


def _mask(file: Path | None, picture: str, cut: Cut, alpha: bool) -> Masks:
    try:
        mask = None
        if file is not None:
            mask = read_alpha(file) if alpha else _grey(file)
    except SkippedError as reason:
        raise UserError(
            f"mask of {one_line(picture)}: {reason} ({file}); mend it, or leave "
            "masked_loss out"
        ) from reason
    if mask is None:
        return np.full((len(cut.corners), *cut.size[::-1]), 255, np.uint8)
    if mask.size != cut.original:
        raise UserError(
            f"mask of {one_line(picture)}: expected {cut.original[0]}x"
            f"{cut.original[1]} px as the picture has, found {mask.width}x"
            f"{mask.height} ({file}); make it anew from the picture"
        )
    crops = np.stack(cut.crops(mask, Image.Resampling.BOX))
    if not crops.any((1, 2)).all():
        dark, light = ("transparent", "opaque") if alpha else ("black", "white")
        raise UserError(
            f"mask of {one_line(picture)}: it is all {dark} where the picture is used "
            f"({file}); make {light} what is to be learned"
        )
    return crops


def is_white(mask: Masks) -> bool:
    """Whether a picture is learned whole with this mask."""
    return bool((mask == 255).all())


def without_mask(pictures: Sequence[str], masks: Sequence[Masks]) -> str:
    """The pictures whose mask is all white, for a line; empty where there are none."""
    pairs = zip(pictures, masks, strict=True)
    return listed(name for name, mask in pairs if is_white(mask))


def loss_weights(
    masks: UInt8[np.ndarray, "N C H W"],
    downscale: int,
    flip: bool,
    unmasked_weight: float,
    normalize: bool,
) -> Float32[np.ndarray, "N F h w"]:
    """What the error of each latent counts, in the views of the pictures.

    The views are the crops, with `flip` each followed by its mirror image; a latent has
    `downscale` pixels along each side. The mask by area, at least `unmasked_weight`
    everywhere; with `normalize` divided by its mean (OneTrainer: `unmasked_weight`,
    `normalize_masked_area_loss`).
    """
    count, _, height, width = masks.shape
    latents = height // downscale, width // downscale
    patches = masks.reshape(-1, latents[0], downscale, latents[1], downscale)
    weights = patches.mean((2, 4)) / 255.0
    weights = np.clip(weights, unmasked_weight, 1.0)
    if normalize:
        weights /= weights.mean((1, 2), keepdims=True)
    mirrored = weights[:, :, ::-1]
    views = np.stack([weights, mirrored] if flip else [weights], axis=1)
    return views.reshape(count, -1, *latents).astype(np.float32)


def _grey(path: Path) -> Image.Image:
    picture, _ = read_picture(path)
    return picture.convert("L")


def _first_of(
    places: Mapping[str, Path], suffixes: str | tuple[str, ...], ending: str = ""
) -> dict[str, Path]:
    found = siblings(places, suffixes, caseless_stem, ending)
    return {picture: files[0] for picture, files in found.items()}
