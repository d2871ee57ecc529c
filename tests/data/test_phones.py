"""Pictures as phones leave them: HEIC, wide gamuts, and the files beside them."""

import importlib.util
import io
import shutil
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.runtime.errors import UserError

SIDE = 16
# Chromaticities of the primaries (SMPTE EG 432-1; ITU-R BT.709) and of D65 and D50.
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def xyz(x, y):
    return np.array([x / y, 1, (1 - x - y) / y])


def to_xyz(primaries):
    """RGB, linear, to XYZ under D65 (Lindbloom, RGB/XYZ matrices)."""
    columns = np.stack([xyz(*each) for each in primaries], axis=1)
    return columns * np.linalg.solve(columns, xyz(*D65))


def linear(values):
    """The curve of sRGB (IEC 61966-2-1), which Display P3 has, too."""
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def encoded(values):
    values = np.clip(values, 0, 1)
    return np.where(
        values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055
    )


def by_the_formula(colours, primaries=P3):
    """8-bit colours of these primaries in sRGB; both are under D65."""
    matrix = np.linalg.inv(to_xyz(BT709)) @ to_xyz(primaries)
    return 255 * encoded(linear(colours / 255.0) @ matrix.T)


def profile(primaries, name=b"Display P3", space=b"RGB "):
    """An ICC profile of matrix and curve by the book (ICC.1:2001-04)."""
    cones = (BRADFORD @ xyz(*D50)) / (BRADFORD @ xyz(*D65))
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD

    def fixed(values):
        return b"".join(struct.pack(">i", round(65536 * v)) for v in values)

    def described(text):
        head = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0"
        return head + bytes(4 + 4 + 2 + 1 + 67)

    levels = np.rint(65535 * linear(np.linspace(0, 1, 1024))).astype(">u2")
    curve = b"curv" + bytes(4) + struct.pack(">I", len(levels)) + levels.tobytes()
    columns = (adapt @ to_xyz(primaries)).T
    tags = {b"desc": described(name), b"cprt": b"text" + bytes(4) + b"none\0"}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + fixed(xyz(*D50))
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for letter, column in zip(b"rgb", columns, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(column)
            tags[bytes([letter]) + b"TRC"] = curve
    body, table, at = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = at + len(body)
    header = struct.pack(
        ">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", space, b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(xyz(*D50)) + bytes(48)
    return header + table + body


def read(folder):
    return read_pictures(folder, Cropping(SIDE, True))


def read_one(folder):
    pictures = read(folder)
    return pictures.images[0].astype(float), "".join(pictures.notes)


def save(folder, name, picture, **options):
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    picture.save(folder / name, **options)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_a_wide_gamut_becomes_srgb(name, tmp_path):
    options = {"lossless": True} if name.endswith("webp") else {}
    save(tmp_path, name, COLOURS, icc_profile=profile(P3), **options)
    ours, note = read_one(tmp_path)
    # The profile's matrix has 16 bits after the point, its curve 1024 values.
    np.testing.assert_allclose(ours, by_the_formula(COLOURS), rtol=0, atol=1.01)
    assert np.abs(ours - COLOURS).max() > 20
    assert note == f"{name}: colours of Display P3 turned into sRGB"


def test_what_means_srgb_stays_to_the_bit_whatever_it_is_called(tmp_path):
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in {"a.png": made, "b.png": profile(BT709, b"mine")}.items():
        save(tmp_path, name, COLOURS, icc_profile=icc)
        ours, note = read_one(tmp_path)
        assert (ours == COLOURS).all() and not note
        (tmp_path / name).unlink()


def test_transparency_stays_with_its_colours(tmp_path):
    alpha = RNG.integers(0, 256, (SIDE, SIDE, 1), np.uint8)
    pixels = np.concatenate([COLOURS, alpha], axis=2)
    save(tmp_path, "a.png", pixels, icc_profile=profile(P3))
    ours, note = read_one(tmp_path)
    opacity = alpha / 255
    expected = by_the_formula(COLOURS) * opacity + 255 * (1 - opacity)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1.51)
    assert "turned into sRGB, transparency put on white" in note


def test_palettes_and_a_key_colour_are_converted(tmp_path):
    few = Image.fromarray(COLOURS).quantize(16)
    save(tmp_path, "a.png", few, icc_profile=profile(P3))
    ours, _ = read_one(tmp_path)
    expected = by_the_formula(np.asarray(few.convert("RGB")))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1.01)
    key = tuple(int(value) for value in COLOURS[3, 4])
    save(tmp_path, "a.png", COLOURS, icc_profile=profile(P3), transparency=key)
    ours, _ = read_one(tmp_path)
    assert (ours[3, 4] == 255).all()
    np.testing.assert_allclose(
        np.delete(ours.reshape(-1, 3), 3 * SIDE + 4, axis=0),
        np.delete(by_the_formula(COLOURS).reshape(-1, 3), 3 * SIDE + 4, axis=0),
        rtol=0,
        atol=1.01,
    )


def test_greys_with_profiles_of_greys_and_of_colours(tmp_path):
    greys = COLOURS[:, :, 0]
    for icc in (profile(P3), profile(P3, b"grey", b"GRAY")):
        save(tmp_path, "a.png", greys, icc_profile=icc)
        ours, note = read_one(tmp_path)
        # White is white in all, and so is every grey with the curve of sRGB.
        np.testing.assert_allclose(ours, greys[:, :, None] + np.zeros(3), atol=1.01)
        assert "turned into sRGB" in note


@pytest.mark.parametrize(
    "icc",
    [b"no profile", profile(P3)[:200], bytes(2**23), profile(P3, space=b"CMYK")],
    ids=["none", "half", "huge", "of inks"],
)
def test_a_damaged_profile_does_not_cost_the_picture(icc, tmp_path):
    save(tmp_path, "a.tif", COLOURS, icc_profile=icc)
    ours, note = read_one(tmp_path)
    assert (ours == COLOURS).all()
    assert note == "a.tif: its colour profile cannot be used: taken for sRGB"


def heic(picture, **options):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    file = io.BytesIO()
    picture.save(file, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.heif", "IMG_1.jpg", "IMG_1.PNG"])
def test_heic_is_known_by_its_content_and_upright(name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the right side is up
    turned = Image.fromarray(np.rot90(COLOURS))
    (tmp_path / name).write_bytes(heic(turned, exif=exif.tobytes()))
    ours, note = read_one(tmp_path)
    assert (ours == COLOURS).all() and not note


def test_a_jpeg_that_is_called_heic_is_read(tmp_path):
    save(tmp_path, "a.heic", COLOURS, format="PNG")
    ours, _ = read_one(tmp_path)
    assert (ours == COLOURS).all()


def test_a_phones_wide_gamut_heic_becomes_srgb(tmp_path):
    (tmp_path / "a.heic").write_bytes(
        heic(Image.fromarray(COLOURS), icc_profile=profile(P3))
    )
    ours, note = read_one(tmp_path)
    np.testing.assert_allclose(ours, by_the_formula(COLOURS), rtol=0, atol=1.01)
    assert note == "a.heic: colours of Display P3 turned into sRGB"


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_without_its_reader_heic_is_told_with_what_to_install(
    name, tmp_path, monkeypatch
):
    (tmp_path / name).write_bytes(heic(Image.fromarray(COLOURS)))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "pillow_heif" else find(n)
    )
    with pytest.raises(UserError, match="HEIC, a phone's: pip install pillow-heif"):
        read(tmp_path)


def test_what_a_phone_puts_beside_its_pictures_shares_one_line(tmp_path):
    save(tmp_path, "IMG_1.jpg", COLOURS)
    for name in ("IMG_1.MOV", "IMG_1.AAE", "IMG_2.mp4", "IMG_2.xmp"):
        shutil.copy(tmp_path / "IMG_1.jpg", tmp_path / name)
    pictures = read(tmp_path)
    assert pictures.names == ("IMG_1.jpg",)
    assert pictures.notes == (
        "skipped 4 beside a phone's pictures: IMG_1.AAE, IMG_1.MOV, IMG_2.mp4, "
        "and 1 more",
    )


def test_half_a_heic_is_skipped_in_one_line(tmp_path):
    whole = heic(Image.fromarray(COLOURS))
    (tmp_path / "a.heic").write_bytes(whole[: len(whole) // 2])
    save(tmp_path, "b.png", COLOURS)
    pictures = read(tmp_path)
    (note,) = pictures.notes
    assert pictures.names == ("b.png",) and note.startswith("skipped a.heic: ")
