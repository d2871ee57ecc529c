"""Decodes one picture file: orientation, colours, transparency, bit depth."""

import contextlib
import importlib.util
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ti_flax.data import colours

_HEIF = "HEIF"
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
    # With pillow-heif.
    _HEIF: (".heic", ".heif", ".hif"),
}
# What phones put beside their pictures: the film of a live photo, notes of edits.
SIDECARS = (".mov", ".mp4", ".aae", ".xmp")
ENDINGS = tuple(itertools.chain(*SUFFIXES.values()))
TRANSPARENT = "transparency put on white (alpha_mask: a mask)"


class SkippedError(Exception):
    """Why a file is not read."""


def read_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """The picture upright in 8-bit RGB, and in words what was done to it.

    Raises:
        _SkippedError: it is not a picture, or cannot be read.
    """
    with _skipping_what_is_damaged() as caught:
        picture, changes = _decode(path)
    # A dict, because Pillow repeats itself.
    said = dict.fromkeys(_one_line(str(warning.message)) for warning in caught)
    return picture, changes + [f"Pillow warns: {words}" for words in said]


def read_alpha(path: Path) -> Image.Image | None:
    """The alpha channel of a picture, upright; None where it is opaque.

    Raises:
        SkippedError: it cannot be read.
    """
    with _skipping_what_is_damaged():
        picture, _ = _load_upright(path)
        if not picture.has_transparency_data:
            return None
        return picture.convert("RGBA").getchannel("A")


@contextlib.contextmanager
def _skipping_what_is_damaged() -> Iterator[list[warnings.WarningMessage]]:
    """Makes a `SkippedError` of any other; in the list is what Pillow warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        # Pillow warns at half the size that it refuses; photographs do get there.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield caught
        except SkippedError:
            raise
        # Pillow's decoders raise whatever a damaged file makes them trip over.
        except Exception as error:
            raise SkippedError(_reason(error)) from error


def _check_entry(path: Path) -> None:
    """Refuses what is not the file of a picture by its kind or its name."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise SkippedError("it is a folder, and no sub-folder N_NAME with pictures")
    if suffix not in ENDINGS:
        raise SkippedError("its ending is not that of a picture")
    # Opening a named pipe would wait for ever.
    if not path.is_file():
        raise SkippedError("it is not a regular file")


def _reason(error: Exception) -> str:
    """What Pillow or the system says is wrong with a file, without the file's path."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "empty, damaged or not a picture"
    strerror = error.strerror if isinstance(error, OSError) else None
    return _one_line(strerror or str(error) or type(error).__name__)


def _load_upright(path: Path) -> tuple[Image.Image, list[str]]:
    """What the file holds, the way up that its camera noted, and what was done."""
    _check_entry(path)
    changes = []
    # Pillow leaves a file that it opened itself open when decoding fails.
    with path.open("rb") as file, Image.open(file, formats=_formats(file)) as opened:
        # The further frames of an MPO are a camera's previews.
        if getattr(opened, "is_animated", False) and opened.format != "MPO":
            changes.append("only its first frame is used")
        opened.load()
        picture, turned = _turn_upright(opened)
    return picture, changes + turned


def _formats(file: BinaryIO) -> list[str]:
    """Those that a file may have by its content: phones rename HEIC to .jpg.

    Raises `SkippedError` where what reads HEIC is not installed.
    """
    if not _is_heif(file):
        return [name for name in SUFFIXES if name != _HEIF]
    if importlib.util.find_spec("pillow_heif") is None:
        raise SkippedError(
            "it is HEIC, a phone's: pip install pillow-heif and it is read, or make "
            "it a JPEG"
        )
    import pillow_heif

    pillow_heif.register_heif_opener()
    return [_HEIF]


def _is_heif(file: BinaryIO) -> bool:
    """Whether the file's first box names HEVC pictures (ISO/IEC 23008-12)."""
    head = file.read(64)
    file.seek(0)
    size = min(int.from_bytes(head[:4]), len(head))
    # The main brand, a version, and all that it agrees with.
    brands = [head[at : at + 4] for at in (8, *range(16, size, 4))]
    return head[4:8] == b"ftyp" and any(b[:3] in (b"hei", b"hev") for b in brands)


def _decode(path: Path) -> tuple[Image.Image, list[str]]:
    picture, changes = _load_upright(path)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture, scale = _to_8_bits(picture)
        changes.append(f"values {scale} scaled to 8 bits")
    picture, converted = colours.to_srgb(picture)
    changes += converted
    if picture.mode == "CMYK":
        changes.append("CMYK turned into RGB")
    if picture.has_transparency_data:
        picture, transparent = _put_on_white(picture)
        if transparent:
            changes.append(TRANSPARENT)
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
        raise SkippedError("its values are not finite")
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


def _one_line(text: str) -> str:
    return " ".join(text.split())
