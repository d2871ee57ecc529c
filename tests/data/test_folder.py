"""Pictures as people have them, made on the spot, against formulae derived here."""

import gc
import io
import json
import os
import shutil
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_flax.data import captions, masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import Pictures, read_pictures
from ti_flax.data.moments import encode_in_batches
from ti_flax.runtime.errors import UserError

SIDE = 16
ORIENTATION = 0x0112
RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(folder: Path, name: str, picture, **options) -> None:
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    picture.save(folder / name, **options)


def read(folder: Path, resolution: int = SIDE, center_crop: bool = True) -> Pictures:
    return read_pictures(folder, Cropping(resolution, center_crop))


def read_one(folder: Path, resolution: int = SIDE, center_crop: bool = True):
    """The only picture of `folder`, and its note or ""."""
    pictures = read(folder, resolution, center_crop)
    assert len(pictures.images) == 1 and len(pictures.notes) <= 1
    return pictures.images[0], "".join(pictures.notes)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = np.broadcast_to(alpha, colours.shape) / 255
    return colours * opacity + 255 * (1 - opacity)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file by the book, of kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def encoded(picture: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def test_ordinary_pictures_come_as_they_are_and_without_notes(tmp_path):
    pixels = {
        name: noise(SIDE, SIDE, 3, seed=seed)
        for seed, name in enumerate(["a.png", "b.PNG", "c.bmp", "d.TIF", "e.webp"])
    }
    for name, picture in pixels.items():
        options = {"lossless": True} if name.endswith("webp") else {}
        save(tmp_path, name, picture, **options)
    pictures = read(tmp_path)
    assert {image.dtype for image in pictures.images} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(pictures.images, np.stack(list(pixels.values())))
    assert pictures.names == tuple(pixels)
    assert pictures.notes == ()


def test_grey_black_and_white_and_palette_pictures_become_rgb(tmp_path):
    grey = noise(SIDE, SIDE)
    save(tmp_path, "1.png", grey)
    save(tmp_path, "2.png", grey > 99)
    palette = Image.fromarray(grey % 4)
    palette.putpalette([9, 8, 7, 60, 50, 40, 200, 0, 100, 1, 2, 3])
    save(tmp_path, "3.png", palette)
    pictures = read(tmp_path)
    as_rgb = [np.stack([plane] * 3, -1) for plane in (grey, (grey > 99) * 255)]
    colours = np.array([[9, 8, 7], [60, 50, 40], [200, 0, 100], [1, 2, 3]])
    np.testing.assert_array_equal(pictures.images, [*as_rgb, colours[grey % 4]])
    assert pictures.notes == ()


def test_order_is_that_of_the_names_on_every_file_system(tmp_path, monkeypatch):
    names = ["B.png", "a.PNG", "C.png", "b.png", "10.png", "9.png"]
    for seed, name in enumerate(names):
        save(tmp_path, name, noise(SIDE, SIDE, 3, seed=seed))
    in_order = ("10.png", "9.png", "a.PNG", "B.png", "b.png", "C.png")
    iterdir = type(tmp_path).iterdir
    for listing in (sorted, lambda paths: sorted(paths, reverse=True)):
        monkeypatch.setattr(
            type(tmp_path), "iterdir", lambda self, f=listing: iter(f(iterdir(self)))
        )
        pictures = read(tmp_path)
        assert pictures.names == in_order
        for name, image in zip(pictures.names, pictures.images, strict=True):
            expected = noise(SIDE, SIDE, 3, seed=names.index(name))
            np.testing.assert_array_equal(image, expected)


# Where the pixel at row r, column c of a stored n x n picture is seen. EXIF 2.3 says on
# which sides the stored row 0 and column 0 are seen: 6 is "right, top".
SEEN_AT = {
    1: lambda r, c, n: (r, c),  # top, left
    2: lambda r, c, n: (r, n - 1 - c),  # top, right
    3: lambda r, c, n: (n - 1 - r, n - 1 - c),  # bottom, right
    4: lambda r, c, n: (n - 1 - r, c),  # bottom, left
    5: lambda r, c, n: (c, r),  # left, top
    6: lambda r, c, n: (c, n - 1 - r),  # right, top
    7: lambda r, c, n: (n - 1 - c, n - 1 - r),  # right, bottom
    8: lambda r, c, n: (n - 1 - c, r),  # left, bottom
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", SEEN_AT)
def test_pictures_are_upright_for_every_exif_orientation(tmp_path, orientation, kind):
    stored = noise(SIDE, SIDE, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    save(tmp_path, f"photo.{kind}", stored, exif=exif, **options)
    upright = np.empty_like(stored)
    for row in range(SIDE):
        for column in range(SIDE):
            place = SEEN_AT[orientation](row, column, SIDE)
            upright[place] = stored[row, column]
    image, note = read_one(tmp_path)
    np.testing.assert_array_equal(image, upright)
    # Pillow itself turns TIFF while it loads.
    if kind != "tiff":
        assert ("EXIF" in note) == (orientation != 1)


def test_a_photograph_is_turned_before_it_is_squashed(tmp_path):
    stored = np.zeros((48, 96, 3), np.uint8)
    stored[:, :48] = RED
    stored[:, 48:] = BLUE
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(tmp_path, "phone.jpg", stored, exif=exif, quality=95, subsampling=0)
    image, _ = read_one(tmp_path, center_crop=False)
    upper, lower = image[: SIDE // 2 - 1], image[SIDE // 2 + 1 :]
    np.testing.assert_allclose(upper, np.broadcast_to(RED, upper.shape), atol=12)
    np.testing.assert_allclose(lower, np.broadcast_to(BLUE, lower.shape), atol=12)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    pixels = noise(SIDE, SIDE, 3)
    save(tmp_path, "a.png", pixels, exif=b"Exif\0\0garbage!!garbage")
    image, note = read_one(tmp_path)
    np.testing.assert_array_equal(image, pixels)
    assert note.startswith("a.png: ") and "EXIF data is damaged" in note


def test_what_pillow_warns_of_becomes_a_note(tmp_path):
    short = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    save(tmp_path, "a.png", noise(SIDE, SIDE, 3), exif=short)
    _, note = read_one(tmp_path)
    assert note.startswith("a.png: Pillow warns: Corrupt EXIF data")


def test_what_pillow_warns_of_thrice_is_said_once(tmp_path):
    file = io.BytesIO()
    Image.fromarray(noise(SIDE, SIDE, 3)).save(file, "TIFF", description="a duck")
    # The entry of tag 270 (ImageDescription, ASCII), with 7 characters and then 10^6.
    entry, too_long = (struct.pack("<HHI", 270, 2, count) for count in (7, 10**6))
    assert file.getvalue().count(entry) == 1
    (tmp_path / "a.tif").write_bytes(file.getvalue().replace(entry, too_long))
    _, note = read_one(tmp_path)
    assert note == "a.tif: Pillow warns: Tag data larger than file. Skipping tag 270"


def test_alpha_is_put_on_white(tmp_path):
    rgba = noise(SIDE, SIDE, 4)
    save(tmp_path, "a.png", rgba)
    image, note = read_one(tmp_path)
    np.testing.assert_allclose(image, on_white(rgba[..., :3], rgba[..., 3:]), atol=1)
    assert note == "a.png: transparency put on white (alpha_mask: a mask)"


def test_grey_alpha_is_put_on_white(tmp_path):
    la = noise(SIDE, SIDE, 2)
    save(tmp_path, "a.png", la)
    image, note = read_one(tmp_path)
    grey = np.repeat(la[..., :1], 3, -1)
    np.testing.assert_allclose(image, on_white(grey, la[..., 1:]), atol=1)
    assert note == "a.png: transparency put on white (alpha_mask: a mask)"


def test_an_opaque_alpha_channel_changes_and_notes_nothing(tmp_path):
    rgba = noise(SIDE, SIDE, 4)
    rgba[..., 3] = 255
    save(tmp_path, "a.png", rgba)
    image, note = read_one(tmp_path)
    np.testing.assert_array_equal(image, rgba[..., :3])
    assert note == ""


@pytest.mark.parametrize(
    ("kind", "transparency", "alpha"),
    [
        ("gif", 2, [255, 255, 0, 255]),
        ("png", 2, [255, 255, 0, 255]),
        ("png", bytes([255, 128, 0, 7]), [255, 128, 0, 7]),
    ],
)
def test_palette_transparency_is_put_on_white(tmp_path, kind, transparency, alpha):
    index = noise(SIDE, SIDE) % 4
    colours = np.array([[9, 8, 7], [60, 50, 40], [200, 0, 100], [1, 2, 3]], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.ravel().tolist())
    save(tmp_path, f"a.{kind}", palette, transparency=transparency)
    image, note = read_one(tmp_path)
    expected = on_white(colours[index], np.array(alpha)[index][..., None])
    np.testing.assert_allclose(image, expected, atol=1)
    assert note == f"a.{kind}: transparency put on white (alpha_mask: a mask)"


def test_a_transparent_key_colour_becomes_white(tmp_path):
    pixels = noise(SIDE, SIDE, 3) % 254
    pixels[:5] = 7, 8, 9
    save(tmp_path, "a.png", pixels, transparency=(7, 8, 9))
    image, _ = read_one(tmp_path)
    pixels[:5] = 255
    np.testing.assert_array_equal(image, pixels)


def test_cmyk_becomes_the_colour_of_its_inks(tmp_path):
    cmyk = noise(SIDE, SIDE, 4)
    save(tmp_path, "a.tif", Image.frombytes("CMYK", (SIDE, SIDE), cmyk.tobytes()))
    image, note = read_one(tmp_path)
    paper = 1 - cmyk.astype(float) / 255
    np.testing.assert_allclose(image, 255 * paper[..., :3] * paper[..., 3:], atol=1)
    assert note == "a.tif: CMYK turned into RGB"


def test_cmyk_jpeg_is_not_a_negative(tmp_path):
    cyan = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    save(tmp_path, "a.jpg", cyan, quality=95)
    image, _ = read_one(tmp_path)
    np.testing.assert_allclose(image, np.full_like(image, 255) * [0, 1, 1], atol=4)


DEEP = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
DEEP[0, :2] = 0, 65535


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.png", Image.fromarray(DEEP)),
        ("a.tif", Image.fromarray(DEEP)),
        ("b.tif", Image.frombytes("I;16B", DEEP.shape, DEEP.astype(">u2").tobytes())),
        ("c.tif", Image.fromarray(DEEP.astype(np.int32))),
        ("d.tif", Image.fromarray(DEEP.astype(np.float32))),
        ("e.tif", Image.fromarray(DEEP.astype(np.float32) / 65535)),
        ("f.tif", Image.fromarray(DEEP.astype(np.float32) / 257)),
        ("g.tif", Image.fromarray(DEEP.astype(np.float32) - 9000)),
        ("h.tif", Image.fromarray(DEEP.astype(np.int32) + 65535)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_deep_greys_are_scaled_to_8_bits_and_not_clipped(tmp_path, name, picture):
    save(tmp_path, name, picture)
    image, note = read_one(tmp_path)
    expected = np.rint(DEEP / 257.0)
    np.testing.assert_array_equal(image, np.stack([expected] * 3, -1))
    assert note.startswith(f"{name}: values ") and note.endswith("scaled to 8 bits")


def test_a_dark_16_bit_picture_stays_dark(tmp_path):
    save(tmp_path, "a.png", np.full((SIDE, SIDE), 257 * 30, np.uint16))
    np.testing.assert_array_equal(read_one(tmp_path)[0], 30)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_deep_colour_pngs_are_scaled_and_not_clipped(tmp_path, colour_type, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "a.png").write_bytes(png(SIDE, SIDE, 16, colour_type, rows))
    image, _ = read_one(tmp_path)
    alpha = deep[..., 3:] / 257 if channels == 4 else np.array(255)
    np.testing.assert_allclose(image, on_white(deep[..., :3] / 257, alpha), atol=2)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, kind):
    first = Image.new("RGB", (SIDE, SIDE), RED)
    later = [Image.new("RGB", (SIDE, SIDE), BLUE), Image.new("RGB", (SIDE, SIDE))]
    save(tmp_path, f"a.{kind}", first, save_all=True, append_images=later)
    image, note = read_one(tmp_path)
    np.testing.assert_allclose(image, np.broadcast_to(RED, image.shape), atol=3)
    assert note == f"a.{kind}: only its first frame is used"


def test_the_preview_in_a_phones_jpeg_is_ignored(tmp_path):
    first = Image.new("RGB", (SIDE, SIDE), RED)
    preview = Image.new("RGB", (SIDE, SIDE), BLUE)
    options = {"format": "MPO", "save_all": True, "append_images": [preview]}
    save(tmp_path, "a.jpg", first, **options)
    image, note = read_one(tmp_path)
    np.testing.assert_allclose(image, np.broadcast_to(RED, image.shape), atol=3)
    assert note == ""


def half(kind: str) -> bytes:
    whole = encoded(noise(64, 64, 3, seed=9), kind)
    return whole[: len(whole) // 2]


BOMB = png(60000, 60000, 8, 2, b"")
NOT_FINITE = encoded(np.full((SIDE, SIDE), np.nan, np.float32), "TIFF")
# What stands in the folder (its bytes, or what makes it), and the reason to be told.
UNUSABLE = {
    "broken.jpg": (half("JPEG"), "truncated"),
    "broken.png": (half("PNG"), "truncated"),
    "broken.gif": (half("GIF"), "truncated"),
    "broken.tif": (half("TIFF"), "truncated"),
    "broken.webp": (half("WEBP"), "decoder"),
    "zero.jpg": (b"", "empty, damaged or not a picture"),
    "words.png": (b"a text", "empty, damaged or not a picture"),
    "program.jpg": (encoded(noise(8, 8), "EPS"), "empty, damaged or not a picture"),
    "bomb.png": (BOMB, "decompression bomb"),
    "nan.tif": (NOT_FINITE, "not finite"),
    "photo.HEIC": (b"?", "empty, damaged or not a picture"),
    "raw.nef": (encoded(noise(8, 8), "TIFF"), "ending"),
    "caption.txt": (b"a text", "ending"),
    "list.json": (b"[]", "ending"),
    "Thumbs.db": (b"?", "ending"),
    "no_ending": (encoded(noise(8, 8), "PNG"), "ending"),
    "folder": (Path.mkdir, "no sub-folder"),
    "folder.jpg": (Path.mkdir, "no sub-folder"),
    "lost_link.jpg": (lambda path: path.symlink_to("nowhere"), "not a regular file"),
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "line\nbreak.jpg": (b"", "empty, damaged or not a picture"),
}


def make_unusable(folder: Path, name: str) -> None:
    content, _ = UNUSABLE[name]
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        content(folder / name)


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_sound_picture_is_skipped_and_named(tmp_path, name):
    make_unusable(tmp_path, name)
    save(tmp_path, "good.png", noise(SIDE, SIDE, 3))
    pictures = read(tmp_path)
    assert pictures.names == ("good.png",)
    (note,) = pictures.notes
    assert name.replace("\n", "\\n") in note and UNUSABLE[name][1] in note
    assert note.startswith("skipped ") and note.isprintable()
    assert str(tmp_path) not in note


def test_a_dirty_folder_gives_no_warning_and_leaves_no_file_open(tmp_path):
    for name in UNUSABLE:
        make_unusable(tmp_path, name)
    save(tmp_path, "good.png", noise(SIDE, SIDE, 3))
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read(tmp_path).notes) == len(UNUSABLE)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_photograph_that_pillow_only_warns_of_is_read(tmp_path, monkeypatch):
    save(tmp_path, "large.png", noise(SIDE, SIDE, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    assert read(tmp_path).notes == ()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE // 2 - 1)
    with pytest.raises(UserError, match=r"large\.png.*exceeds limit"):
        read(tmp_path)


def test_hidden_files_and_folders_share_one_note(tmp_path):
    for folder in (".cache", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder, "a.png", noise(SIDE, SIDE, 3, seed=1))
    (tmp_path / ".DS_Store").write_bytes(b"?")
    save(tmp_path, "._a.png", noise(SIDE, SIDE, 3, seed=2))
    save(tmp_path, "a.png", noise(SIDE, SIDE, 3))
    pictures = read(tmp_path)
    assert pictures.names == ("a.png",)
    assert pictures.notes == (
        "skipped 4 hidden: ._a.png, .cache, .DS_Store, and 1 more",
    )


def test_a_copy_of_a_picture_is_skipped(tmp_path):
    pixels = noise(SIDE, SIDE, 3)
    save(tmp_path, "a.png", pixels)
    save(tmp_path, "b.bmp", pixels)
    # One level of one colour makes another picture.
    pixels[3, 4, 1] ^= 1
    save(tmp_path, "c.png", pixels)
    pictures = read(tmp_path)
    assert pictures.names == ("a.png", "c.png")
    assert pictures.notes == ("skipped b.bmp: the same picture as a.png",)


def test_enlarged_pictures_are_noted(tmp_path):
    save(tmp_path, "small.png", noise(5, 9, 3))
    save(tmp_path, "narrow.png", noise(SIDE - 1, 40, 3))
    save(tmp_path, "enough.png", noise(SIDE, 40, 3))
    assert read(tmp_path).notes == (
        "narrow.png: enlarged from 40x15 px",
        "small.png: enlarged from 9x5 px",
    )


def test_several_changes_share_one_note(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    save(tmp_path, "a.png", noise(4, 4, 4), exif=exif)
    _, note = read_one(tmp_path)
    assert note == (
        "a.png: turned as its EXIF orientation says, "
        "transparency put on white (alpha_mask: a mask),"
        " enlarged from 4x4 px"
    )


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_crop_keeps_the_centre_and_squash_keeps_everything(tmp_path, shape):
    pixels = np.empty((*shape, 3), np.uint8)
    pixels[:] = BLUE
    long = int(np.argmax(shape))
    middle = [slice(None), slice(None)]
    middle[long] = slice(32, 64)
    pixels[tuple(middle)] = RED
    save(tmp_path, "a.png", pixels)

    cropped, _ = read_one(tmp_path, resolution=24, center_crop=True)
    np.testing.assert_array_equal(cropped, np.broadcast_to(RED, (24, 24, 3)))

    squashed, _ = read_one(tmp_path, resolution=24, center_crop=False)
    along = np.moveaxis(squashed, long, 0)
    outer, inner = np.r_[0:7, 17:24], np.r_[9:15]
    np.testing.assert_array_equal(along[outer], np.broadcast_to(BLUE, (14, 24, 3)))
    np.testing.assert_array_equal(along[inner], np.broadcast_to(RED, (6, 24, 3)))


def bicubic_weights(size: int, new_size: int) -> np.ndarray:
    """Keys' cubic convolution (1981, a = -1/2), widened with the reduction."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5) * scale
    x = np.abs(np.arange(size) + 0.5 - centres[:, None]) / stretch
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("center_crop", [True, False])
@pytest.mark.parametrize("shape", [(61, 47), (40, 83), (9, 13)])
def test_values_are_those_of_an_antialiased_bicubic_filter(
    tmp_path, shape, center_crop
):
    pixels = 60 + noise(*shape, 3) // 2  # no overshoot beyond 0..255
    save(tmp_path, "a.png", pixels)
    image, _ = read_one(tmp_path, center_crop=center_crop)
    if center_crop:
        edge = min(shape)
        top, left = ((length - edge) // 2 for length in shape)
        pixels = pixels[top : top + edge, left : left + edge]
    height, width = pixels.shape[:2]
    down, across = bicubic_weights(height, SIDE), bicubic_weights(width, SIDE)
    expected = np.einsum("yh,xw,hwc->yxc", down, across, pixels.astype(float))
    # Pillow rounds to 8 bits after each of the two directions.
    np.testing.assert_allclose(image, expected, atol=1.5)


def test_fine_patterns_of_a_large_photograph_do_not_alias(tmp_path):
    board = np.indices((1500, 2003)).sum(0) % 2 * np.uint8(255)
    save(tmp_path, "a.png", board.astype(np.uint8), compress_level=1)
    image, _ = read_one(tmp_path, resolution=64)
    assert image.min() >= 125 and image.max() <= 130


def nothing(folder):
    pass


def five_bad_files(folder):
    for name in "abcde":
        (folder / f"{name}.jpg").write_bytes(b"")


def one_file(folder):
    folder.rmdir()
    save(folder.parent, folder.name, noise(SIDE, SIDE, 3), format="PNG")


def only_hidden(folder):
    save(folder, ".a.png", noise(SIDE, SIDE, 3))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "No such file or directory"),
        (one_file, "Not a directory"),
        (nothing, "it is empty"),
        (only_hidden, r"skipped 1 hidden: \.a\.png"),
        (lambda folder: (folder / "10_sks dog").mkdir(), "10_sks dog.*sub-folder"),
        (five_bad_files, r"skipped a\.jpg: .*b\.jpg: .*c\.jpg: [^;]*; and 2 more\)"),
    ],
    ids=["missing", "file", "empty", "hidden", "sub-folder", "unreadable"],
)
def test_a_folder_without_pictures_is_told_in_one_line(tmp_path, prepare, message):
    folder = tmp_path / "cat"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=message) as raised:
        read(folder)
    line = str(raised.value)
    assert line.isprintable()
    assert line.startswith("train_data_dir: ") and str(folder) in line


# Folders with a picture each; subsets -> names and how often each counts.
SUBSETS = {
    "two of them": (
        [("b c", 2), ("A", 1)],
        [("A/p.png", 1), ("b c/p.png", 2)],
    ),
    "a number is a name": ([("10_cat", 1)], [("10_cat/p.png", 1)]),
    "a number that counts": ([("10_cat", 3)], [("10_cat/p.png", 3)]),
    "one inside another": (
        [("s/t", 5), ("s", 1)],
        [("s/p.png", 1), ("s/t/p.png", 5)],
    ),
    "the folder itself": ([("A", 2), (".", 1)], [("p.png", 1), ("A/p.png", 2)]),
    "brackets": ([("[v1] *", 1)], [("[v1] */p.png", 1)]),
    "deep": ([("s/t/u", 10**9)], [("s/t/u/p.png", 10**9)]),
}


@pytest.fixture
def folders(tmp_path):
    names = ["A", "b c", "10_cat", "s", "s/t", "s/t/u", "[v1] *", "."]
    for seed, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, "p.png", noise(SIDE, SIDE, 3, seed=seed))
    return tmp_path


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_are_read_alone_in_the_order_of_their_names(name, turned, folders):
    subsets, expected = SUBSETS[name]
    subsets = subsets[::-1] if turned else subsets
    pictures = read_pictures(folders, Cropping(SIDE), subsets)
    assert [*zip(pictures.names, pictures.repeats, strict=True)] == expected
    for picture, image in zip(pictures.names, pictures.images, strict=True):
        with Image.open(folders / picture) as stored:
            np.testing.assert_array_equal(image, np.asarray(stored))
    counts = np.array([count for _, count in expected])
    lowest = counts // np.gcd.reduce(counts)
    np.testing.assert_array_equal(np.bincount(pictures.order()), lowest)
    # What is not named is not told of, but inside a folder that is.
    assert all("that subsets does not name" in note for note in pictures.notes)


def test_subsets_are_in_the_order_of_folders_that_count(folders):
    """The same list of pictures, and so the same draws, as kohya's folders N_NAME."""
    for path in [*folders.iterdir()]:
        if path.name not in ("A", "b c"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    subsets = read_pictures(folders, Cropping(SIDE), [("b c", 3), ("A", 2)])
    for name, numbered in (("A", "2_A"), ("b c", "3_b c")):
        (folders / name).rename(folders / numbered)
    kohya = read(folders)
    assert subsets.repeats == kohya.repeats == (2, 3)
    np.testing.assert_array_equal(subsets.images, kohya.images)
    np.testing.assert_array_equal(subsets.order(), kohya.order())


def test_captions_and_masks_beside_pictures_of_subsets_go_with_them(folders):
    (folders / "A" / "p.txt").write_text("of A")
    (folders / "s" / "t" / "p.TXT").write_text("of t")
    grey = np.full((SIDE, SIDE), 99, np.uint8)
    save(folders / "A", "p-masklabel.png", grey)
    save(folders / "s" / "t", "p-masklabel.png", grey)
    subsets = [("A", 1), ("s/t", 2)]
    pictures = read_pictures(folders, Cropping(SIDE), subsets)
    assert pictures.names == ("A/p.png", "s/t/p.png")
    found = masks.beside(folders, pictures.names)
    assert {*found} == {*pictures.names}
    read = captions.read_captions(folders, pictures.names, "auto")
    assert (read.source, read.texts) == ("txt", ("of A", "of t"))


@pytest.mark.parametrize("place", ["s/t", "s", "."])
def test_metadata_of_subsets_lies_beside_or_above(place, folders):
    if place == "s":  # of that folder's own pictures
        subsets, name, picture = [("s", 1), ("s/t", 1)], "t/p.png", "s/t/p.png"
    else:
        subsets, picture = [("s/t", 1)], "s/t/p.png"
        name = "p.png" if place == "s/t" else picture
    line = json.dumps({"file_name": name, "text": "of t"})
    (folders / place / "metadata.jsonl").write_text(line)
    pictures = read_pictures(folders, Cropping(SIDE), subsets)
    read = captions.read_captions(folders, pictures.names, "auto")
    assert read.source == "jsonl"
    assert dict(zip(pictures.names, read.texts, strict=True))[picture] == "of t"


def test_notes_of_subsets_have_paths_from_the_folder_above(folders):
    (folders / "A" / "broken.png").write_bytes(b"no picture")
    (folders / "A" / ".hidden.png").write_bytes(b"")
    (folders / "A" / "10_inner").mkdir()
    (folders / "none").mkdir()
    subsets = [("A", 1), ("none", 2), ("s", 1), ("s/t", 1)]
    assert read_pictures(folders, Cropping(SIDE), subsets).notes == (
        "skipped A/10_inner: it is a folder that subsets does not name",
        "skipped A/broken.png: empty, damaged or not a picture",
        "skipped s/t/u: it is a folder that subsets does not name",
        "no picture in none of subsets",
        "skipped 1 hidden: A/.hidden.png",
    )


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ([("A", 1), ("lost", 1)], "subsets: expected a folder .*lost.*No such file"),
        ([("A/p.png", 1)], "subsets: expected a folder .*Not a directory"),
        ([("none", 1)], "no readable picture in .*no picture in none of subsets"),
        ([("A", 10**9), ("s", 1)], None),
    ],
)
def test_a_mistake_with_subsets_is_told_in_one_line(subsets, message, folders):
    (folders / "none").mkdir()
    with pytest.raises(UserError, match=message or "count 1000000001 times") as raised:
        read_pictures(folders, Cropping(SIDE), subsets).order()
    assert str(raised.value).isprintable()


SUMMED = 8
KERNEL = np.random.default_rng(1).normal(size=(SUMMED, SUMMED, 3, 10))


def strided_convolution(pixels: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] -> [B, H/8, W/8, 10]; its kernel is not symmetric, like a VAE's."""
    batch, height, width, _ = pixels.shape
    blocks = (batch, height // SUMMED, SUMMED, width // SUMMED, SUMMED, 3)
    return np.einsum("byixjc,ijcm->byxm", pixels.reshape(blocks), KERNEL)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(5, 4), (3, 2), (1, 8), (4, 1)])
def test_each_picture_is_encoded_in_full_batches(count, batch_size, flip):
    images = noise(count, 16, 24, 3)
    before = images.copy()
    shapes = set()

    def encode(pixels):
        shapes.add((pixels.shape, pixels.dtype))
        return strided_convolution(pixels)

    moments = encode_in_batches(images, encode, batch_size, flip, progress=False)
    assert shapes == {((batch_size, 16, 24, 3), np.dtype(np.float32))}
    assert moments.shape == (count, 2 if flip else 1, 2, 3, 10)
    assert moments.dtype == np.float32
    expected = strided_convolution(before / 127.5 - 1)
    np.testing.assert_allclose(moments[:, 0], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(images, before)


def test_the_mirror_image_is_encoded_and_not_the_moments_mirrored():
    images = noise(3, 16, 24, 3)
    moments = encode_in_batches(images, strided_convolution, 4, True, False)
    expected = strided_convolution(images[:, :, ::-1] / 127.5 - 1)
    np.testing.assert_allclose(moments[:, 1], expected, rtol=1e-5, atol=1e-4)
    assert np.abs(moments[:, 1] - moments[:, 0, :, ::-1]).mean() > 1


def test_pixels_are_between_minus_one_and_one():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = encode_in_batches(images, lambda pixels: pixels, 1, False, False)
    expected = np.linspace(-1, 1, 256).astype(np.float32)
    np.testing.assert_allclose(pixels.ravel()[::3], expected, rtol=0, atol=1e-7)
    assert pixels.min() == -1 and pixels.max() == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_progress_counts_pictures_on_a_terminal(monkeypatch, progress):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    encode_in_batches(noise(3, 8, 8, 3), strided_convolution, 4, True, progress)
    assert ("6/6" in terminal.getvalue()) == progress
    assert progress or terminal.getvalue() == ""


def test_progress_is_silent_where_stderr_is_no_terminal(capsys):
    encode_in_batches(noise(3, 8, 8, 3), strided_convolution, 4, True)
    assert capsys.readouterr() == ("", "")
