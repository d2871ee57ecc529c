"""Masks: which file is whose, what is cut out of it, what the latents count."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_flax.data import masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.runtime.errors import UserError


def draw(path: Path, width: int = 32, height: int = 32, seed: int = 0) -> None:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def read(folder: Path, files=None, side: int = 32, crop: bool = True, alpha=False):
    pictures = read_pictures(folder, Cropping(side, crop))
    if files is None:
        files = masks.beside(folder, pictures.names)
    return masks.read_masks(files, pictures.names, pictures.cuts, alpha)


NFC, NFD = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("cat.jpg", "cat-masklabel.png"),
        ("cat.PNG", "cat-masklabel.png"),
        ("Cat.png", "cat-MaskLabel.PNG"),
        (f"{NFC}.png", f"{NFD}-masklabel.png"),
        ("10_cat/a b.png", "10_cat/a b-masklabel.png"),
        ("a.b.png", "a.b-masklabel.png"),
    ],
)
def test_a_label_beside_its_picture_is_a_mask_and_no_picture(tmp_path, picture, mask):
    draw(tmp_path / picture)
    grey(tmp_path / mask, np.full((32, 32), 99))
    pictures = read_pictures(tmp_path, Cropping(32))
    assert pictures.names == (picture,) and not pictures.notes
    assert masks.beside(tmp_path, pictures.names) == {picture: tmp_path / mask}
    assert (np.array(read(tmp_path)) == 99).all()


@pytest.mark.parametrize(
    "name", ["dog-masklabel.png", "cat-masklabel.jpg", "cat-m.png"]
)
def test_others_are_pictures(tmp_path, name):
    draw(tmp_path / "cat.png")
    draw(tmp_path / name, seed=1)
    pictures = read_pictures(tmp_path, Cropping(32))
    assert sorted(pictures.names) == sorted(["cat.png", name])
    assert not masks.beside(tmp_path, pictures.names)


def test_a_folder_of_masks_has_the_names_of_the_pictures(tmp_path):
    names = ["a.png", "2_x/a.jpg", "2_x/b.png"]
    for seed, name in enumerate(names):
        draw(tmp_path / "pictures" / name, seed=seed)
    folder = tmp_path / "masks"
    for name, value in (("a.PNG", 10), ("b.bmp", 20), ("c.png", 30), ("2_x/a.png", 40)):
        grey(folder / name, np.full((32, 32), value))
    pictures = read_pictures(tmp_path / "pictures", Cropping(32))
    found = masks.in_folder(folder, pictures.names)
    assert found == {
        "a.png": folder / "a.PNG",
        "2_x/a.jpg": folder / "2_x" / "a.png",
        "2_x/b.png": folder / "b.bmp",
    }
    with pytest.raises(UserError, match="conditioning_data_dir: expected a folder"):
        masks.in_folder(tmp_path / "none", pictures.names)


def test_alpha_is_a_mask_and_what_is_opaque_is_white(tmp_path):
    draw(tmp_path / "0.jpg")
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    found = read(tmp_path, {n: tmp_path / n for n in ("0.jpg", "1.png")}, alpha=True)
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1][0], pixels[..., 3])
    assert masks.without_mask(["0.jpg", "1.png"], found) == "0.jpg"


@pytest.mark.parametrize(("width", "height"), [(32, 32), (96, 64), (50, 90), (64, 64)])
@pytest.mark.parametrize("crop", [True, False])
def test_a_mask_is_cut_as_its_picture(tmp_path, width, height, crop):
    """A mask that is a picture of itself: same place, to a shade."""
    ramp = np.linspace(0, 255, height)[:, None] + np.linspace(0, 255, width)[None]
    values = (ramp / 2).round()
    grey(tmp_path / "a.png", values)
    grey(tmp_path / "a-masklabel.png", values)
    pictures = read_pictures(tmp_path, Cropping(32, crop))
    np.testing.assert_allclose(
        read(tmp_path, crop=crop)[0][0].astype(float),
        pictures.images[0][..., 0],
        atol=3,
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: grey(p, np.full((32, 31), 255)), "expected 32x32 px as the picture"),
        (lambda p: grey(p, np.zeros((32, 32))), "it is all black where the picture"),
        (lambda p: p.write_bytes(b"none"), "empty, damaged or not a picture"),
        (lambda p: p.mkdir(), "it is a folder"),
    ],
)
def test_a_mask_that_does_not_fit_is_told_by_the_pictures_name(tmp_path, change, told):
    draw(tmp_path / "cat.png")
    change(tmp_path / "cat-masklabel.png")
    with pytest.raises(UserError) as raised:
        read(tmp_path)
    assert str(raised.value).startswith("mask of cat.png: ")
    assert told in str(raised.value)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("outside", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_latents_count_the_area_of_the_mask(flip, outside, normalize):
    found = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    found[1] = 0
    found[1, :5, :11] = 255
    weights = masks.loss_weights(found[:, None], 8, flip, outside, normalize)
    assert weights.shape == (3, 1 + flip, 4, 4) and weights.dtype == np.float32
    for index, mask in enumerate(found):
        expected = np.zeros((4, 4))
        for y in range(32):
            for x in range(32):
                expected[y // 8, x // 8] += mask[y, x] / 255 / 64
        expected = np.maximum(expected, outside)
        if normalize:
            expected = expected / (expected.sum() / 16)
        np.testing.assert_allclose(weights[index, 0], expected, rtol=1e-5)
        if flip:
            np.testing.assert_array_equal(weights[index, 1], weights[index, 0][:, ::-1])
