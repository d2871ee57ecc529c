"""Colours of a picture as its profile means them, in sRGB as models have seen them."""

import io

import numpy as np
from PIL import Image, ImageCms

# Those of cameras and editors have at most some hundred kilobytes.
_MAX_PROFILE_BYTES = 2**22
# Of 255: what the rounding of two programs that both mean sRGB comes to.
_SAME = 2
_SRGB = ImageCms.createProfile("sRGB")


# By the colour space that a profile is of.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """The picture in sRGB, by its ICC profile, and in words what was done.

    Without a profile, or with one that means sRGB, it is the same picture: an iPhone's
    Display P3 shows paler colours if it is taken for sRGB. Deep grey values stay.
    """
    data = picture.info.get("icc_profile")
    if not data or picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return picture, []
    try:
        if len(data) > _MAX_PROFILE_BYTES:
            raise ValueError
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = _MODES[profile.profile.xcolor_space.strip()]
        if (mode == "CMYK") != (picture.mode == "CMYK"):
            raise ValueError
        if mode == "RGB" and _means_srgb(profile):
            return picture, []
        told = " ".join(ImageCms.getProfileDescription(profile).split())[:40]
        converted = _convert(picture, mode, profile)
    # Whatever a damaged profile raises, the pixels are sound.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        return picture, ["its colour profile cannot be used: taken for sRGB"]
    return converted, [f"colours of {told or 'its profile'} turned into sRGB"]


def _convert(
    picture: Image.Image, mode: str, profile: ImageCms.ImageCmsProfile
) -> Image.Image:
    """The colours by the profile, which is of `mode`; transparency as it is."""
    opaque = picture if picture.mode == mode else picture.convert(mode)
    converted = ImageCms.profileToProfile(opaque, profile, _SRGB, outputMode="RGB")
    if picture.has_transparency_data:
        converted.putalpha(picture.convert("RGBA").getchannel("A"))
    return converted


def _means_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether colours spread over the whole cube stay what they are."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    there = ImageCms.profileToProfile(Image.fromarray(cube), profile, _SRGB)
    difference = np.abs(np.asarray(there, np.int16) - cube.astype(np.int16))
    return int(difference.max()) <= _SAME
