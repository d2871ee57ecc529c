"""A folder of pictures: what is read, refused, turned upright, cropped and encoded."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from ti_flax.runtime.errors import UserError

# The decoders that untrusted files may reach, and the endings of their files. Left out
# on purpose: EPS, which runs Ghostscript. A camera's raw file opens as TIFF but yields
# only its thumbnail, so the ending counts and not the content alone.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
}
NAMES_IN_A_LINE = 3


class Pictures(NamedTuple):
    """The pictures of one concept, in the order of their file names."""

    # 8-bit RGB, H = W = resolution.
    images: UInt8[np.ndarray, "N H W 3"]
    # File name of each picture.
    names: tuple[str, ...]
    # One line per file that was skipped or is not used as it is.
    notes: tuple[str, ...]

    def fingerprints(self) -> list[str]:
        """A line for each picture that tells whether another host has the same."""
        return [
            f"{_printable(name)} {hashlib.sha256(image).hexdigest()[:12]}"
            for name, image in zip(self.names, self.images, strict=True)
        ]


class _SkippedError(Exception):
    """Why a file is not read."""


def read_pictures(folder: Path, resolution: int, center_crop: bool) -> Pictures:
    """Reads every picture of `folder` as `resolution` x `resolution` pixels.

    The order is that of the names without regard to case, on every file system. A
    file that is no picture, is damaged or repeats the pixels of an earlier one (it
    would count twice in training) is skipped and named in the notes. So is a folder.

    Args:
        folder: holds the pictures; see `SUFFIXES` for the kinds.
        resolution: side of the square result, px.
        center_crop: cut the largest centred square out of each picture; otherwise
            squash the whole picture into the square, as diffusers does.

    Raises:
        UserError: `folder` is missing, not a folder or without a readable picture.
    """
    paths, hidden = _list_folder(folder)
    images, names, notes = [], [], []
    first_name: dict[bytes, str] = {}
    for path in paths:
        shown = _printable(path.name)
        try:
            picture, changes = _read_picture(path)
            if min(picture.size) < resolution:
                changes.append(f"enlarged from {picture.width}x{picture.height} px")
            image = np.asarray(_make_square(picture, resolution, center_crop))
            same_as = first_name.setdefault(hashlib.sha256(image).digest(), shown)
            if same_as != shown:
                raise _SkippedError(f"the same picture as {same_as}")
        except _SkippedError as reason:
            notes.append(f"skipped {shown}: {reason}")
            continue
        images.append(image)
        names.append(path.name)
        if changes:
            notes.append(f"{shown}: {', '.join(changes)}")
    if hidden:
        notes.append(f"skipped {len(hidden)} hidden: {_shorten(hidden, ', ')}")
    if not images:
        found = _shorten(notes, "; ") if notes else "it is empty"
        raise UserError(
            f"train_data_dir: no readable picture in {_printable(str(folder))}"
            f" ({found}); put the concept's pictures there, as .jpg or .png files"
        )
    return Pictures(np.stack(images), tuple(names), tuple(notes))


def encode_in_batches(
    images: UInt8[np.ndarray, "N H W 3"],
    encode: Callable[[Float32[np.ndarray, "B H W 3"]], ArrayLike],
    batch_size: int,
    flip: bool,
    progress: bool = True,
) -> Float32[np.ndarray, "N F h w two_c"]:
    """Encodes each picture once and, with `flip`, its mirror image (F = 2, else 1).

    The mirror's moments come from mirrored pixels: the VAE's kernels are not symmetric
    and its downsampling pads one side only, so mirrored moments are not the moments of
    the mirrored picture.

    Args:
        images: 8-bit RGB.
        encode: maps pixels in [-1, 1] to the moments of their latents, [B, h, w, 2c]
            (mean and log variance). It is always called with B = `batch_size`, the last
            batch filled up with repeats, so that it is compiled once.
        batch_size: pictures per call, mirror images counted.
        flip: encode the mirror images too.
        progress: show a progress bar on stderr when that is a terminal.

    Returns:
        The moments; axis F holds the picture, then its mirror image.
    """
    variants = 2 if flip else 1
    total = len(images) * variants
    moments = []
    with tqdm(
        total=total,
        desc="encoding pictures",
        unit="picture",
        disable=None if progress else True,
    ) as bar:
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            index = np.arange(start, start + batch_size).clip(max=total - 1)
            batch = images[index // variants]
            mirrored = index % variants == 1
            batch[mirrored] = batch[mirrored, :, ::-1]
            encoded = np.asarray(encode(_normalize(batch)), np.float32)
            moments.append(encoded[: stop - start])
            bar.update(stop - start)
    flat = np.concatenate(moments)
    return flat.reshape(len(images), variants, *flat.shape[1:])


def _normalize(
    images: UInt8[np.ndarray, "B H W 3"],
) -> Float32[np.ndarray, "B H W 3"]:
    """Maps 0..255 to [-1, 1], in float64 and rounded once as diffusers does."""
    return (images / 127.5 - 1.0).astype(np.float32)


def _list_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """The visible entries of `folder` in order, and the names of the hidden ones."""
    try:
        # The name itself breaks ties, so that no order depends on the file system.
        entries = sorted(folder.iterdir(), key=lambda p: (p.name.casefold(), p.name))
    except OSError as error:
        raise UserError(
            "train_data_dir: expected a folder of pictures, found"
            f" {_printable(str(folder))} ({error.strerror}); give the folder that holds"
            " the concept's pictures"
        ) from error
    hidden = [_printable(p.name) for p in entries if p.name.startswith(".")]
    return [p for p in entries if not p.name.startswith(".")], hidden


def _read_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """The picture upright in 8-bit RGB, and in words what was done to it.

    Raises:
        _SkippedError: it is not a picture, or cannot be read.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        # Pillow warns at half the size that it refuses; photographs do get there.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            _check_entry(path)
            picture, changes = _decode(path)
        except _SkippedError:
            raise
        # Pillow's decoders raise whatever a damaged file makes them trip over.
        except Exception as error:
            raise _SkippedError(_reason(error)) from error
    # A dict, because Pillow repeats itself.
    said = dict.fromkeys(_one_line(str(warning.message)) for warning in caught)
    return picture, changes + [f"Pillow warns: {words}" for words in said]


def _check_entry(path: Path) -> None:
    """Refuses what is not the file of a picture by its kind or its name."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise _SkippedError("it is a folder, and sub-folders are not read")
    if suffix in (".heic", ".heif"):
        raise _SkippedError("HEIC is not supported, convert it to JPEG")
    if not any(suffix in suffixes for suffixes in SUFFIXES.values()):
        raise _SkippedError("its ending is not that of a picture")
    # Opening a named pipe would wait for ever.
    if not path.is_file():
        raise _SkippedError("it is not a regular file")


def _reason(error: Exception) -> str:
    """What Pillow or the system says is wrong with a file, without the file's path."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty, damaged or not a picture"
    strerror = error.strerror if isinstance(error, OSError) else None
    return _one_line(strerror or str(error) or type(error).__name__)


def _decode(path: Path) -> tuple[Image.Image, list[str]]:
    changes = []
    # Pillow leaves a file that it opened itself open when decoding fails.
    with path.open("rb") as file, Image.open(file, formats=list(SUFFIXES)) as opened:
        # The further frames of an MPO are a camera's previews.
        if getattr(opened, "is_animated", False) and opened.format != "MPO":
            changes.append("only its first frame is used")
        opened.load()
        picture, turned = _turn_upright(opened)
        changes += turned
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture, scale = _to_8_bits(picture)
        changes.append(f"values {scale} scaled to 8 bits")
    if picture.mode == "CMYK":
        changes.append("CMYK turned into RGB")
    if picture.has_transparency_data:
        picture, transparent = _put_on_white(picture)
        if transparent:
            changes.append("transparency put on white")
    return picture.convert("RGB"), changes


def _turn_upright(opened: Image.Image) -> tuple[Image.Image, list[str]]:
    """A copy of a loaded picture, the way up that its camera noted in EXIF."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        upright = ImageOps.exif_transpose(opened)
    # Whatever its damaged metadata raises, the pixels are sound.
    except Exception:
        return opened.copy(), ["its EXIF data is damaged, so it is not turned"]
    if orientation in range(2, 9):
        return upright, ["turned as its EXIF orientation says"]
    return upright, []


def _to_8_bits(picture: Image.Image) -> tuple[Image.Image, str]:
    """Scales deep grey values, which Pillow's `convert` would clip at 255.

    Integers are on the 16-bit scale. Files do not say the scale of floats: it is the
    first of 1, 255 and 65535 that holds them all. Values outside are stretched to fit.
    """
    values = np.asarray(picture, np.float32)
    black, white = float(values.min()), float(values.max())
    if not np.isfinite([black, white]).all():
        raise _SkippedError("its values are not finite")
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    fitting = [scale for scale in scales if black >= 0.0 and white <= scale]
    if fitting:
        black, white = 0.0, fitting[0]
    greys = np.rint((values - black) / ((white - black) or 1.0) * 255.0)
    return Image.fromarray(greys.astype(np.uint8)), f"{black:g} to {white:g}"


def _put_on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture on a white ground, and whether any of the ground shows.

    Dropping the alpha channel, as peers do, shows what lies under it: mostly black.
    """
    picture = picture.convert("RGBA")
    lowest_alpha, _ = picture.getchannel("A").getextrema()
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture), lowest_alpha < 255


def _make_square(picture: Image.Image, side: int, center_crop: bool) -> Image.Image:
    """Crops or squashes, then resizes.

    Pillow's bicubic filter widens with the reduction, so it does not alias, and it
    overshoots half as much as Lanczos at hard edges (an object on white), where a halo
    would be learned with the concept. It is also what diffusers trains with.
    """
    if center_crop:
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        picture = picture.crop((left, top, left + edge, top + edge))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _printable(name: str) -> str:
    """`name`, escaped where it would break a line or a terminal."""
    return name if name.isprintable() else ascii(name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shorten(parts: list[str], separator: str) -> str:
    more = len(parts) - NAMES_IN_A_LINE
    tail = [f"and {more} more"] if more > 0 else []
    return separator.join(parts[:NAMES_IN_A_LINE] + tail)
