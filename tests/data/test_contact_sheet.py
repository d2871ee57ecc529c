"""The contact sheet: what stands on it is what training reads, and nothing acts."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from ti_flax.data import contact_sheet, doctor, masks
from ti_flax.data.buckets import Cropping
from ti_flax.runtime.errors import UserError


def draw(path, size=(64, 64), seed=0):
    """A smooth picture, which JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    for seed, name in enumerate(("3_a/<b>0.png", "3_a/1.png", "1_b/2.png")):
        draw(place / name, size=(64 + 32 * seed, 64), seed=seed)
    (place / "3_a" / "1.txt").write_text("a [name] & <script>alert(1)</script>\nold {}")
    (place / "1_b" / "2.txt").write_text("plain")
    mask = np.zeros((64, 96), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(place / "3_a" / "1-masklabel.png")
    return place


@pytest.fixture
def page(folder, tmp_path):
    seen = doctor.examine(folder, Cropping(64))
    path = tmp_path / "sheet [1].html"
    contact_sheet.write(path, folder, seen)
    return path.read_text(encoding="utf-8"), seen.pictures


def figures(page):
    return re.findall(r"<figure>(.*?)</figure>", page, re.S)


def images(figure):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", figure)
    ]


def test_each_picture_is_there_as_it_is_cropped_and_masked(page):
    text, pictures = page
    found = dict(zip(pictures.names, figures(text), strict=True))
    assert len(found) == 3
    for name, image in zip(pictures.names, pictures.images, strict=True):
        shown = images(found[name])
        assert np.abs(shown[0].astype(float) - image).mean() < 6
        assert len(shown) == 1 + (name == "3_a/1.png")
    whole, masked = images(found["3_a/1.png"])
    np.testing.assert_allclose(masked[:28].astype(float), whole[:28], atol=20)
    assert masked[36:].mean() < 0.3 * whole[36:].mean()


def test_captions_shares_and_notes_stand_at_their_picture(page):
    text, pictures = page
    found = dict(zip(pictures.names, figures(text), strict=True))
    word = '<span class="word">&lt;word&gt;</span>'
    lines = {name: re.findall(r"<li>(.*?)</li>", found[name]) for name in found}
    assert lines["1_b/2.png"] == [f"{word}, plain"]
    assert lines["3_a/1.png"] == [
        f"a {word} &amp; &lt;script&gt;alert(1)&lt;/script&gt;",
        f"old {word}",
    ]
    shares = {name: float(re.search(r"([\d.]+) %", found[name])[1]) for name in found}
    assert shares == pytest.approx(
        {"3_a/<b>0.png": 300 / 7, "3_a/1.png": 300 / 7, "1_b/2.png": 100 / 7}, abs=0.1
    )
    above = html.unescape(text[: text.index("<figure>")])
    assert "no caption for 3_a/<b>0.png" in above
    assert "no mask for 1_b/2.png, 3_a/<b>0.png; learned whole" in above


def test_nothing_on_it_acts_or_is_loaded(page):
    text, _ = page
    assert "<script" not in text and "<b>0.png" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)


def test_notes_of_a_picture_stand_at_it_alone(folder, tmp_path):
    draw(folder / "1_b" / "9.png", size=(32, 32), seed=9)
    seen = doctor.examine(folder, Cropping(64))
    contact_sheet.write(tmp_path / "s.html", folder, seen)
    text = (tmp_path / "s.html").read_text()
    (at,) = (each for each in figures(text) if "1_b/9.png" in each)
    note = "1_b/9.png: enlarged from 32x32 px"
    assert note in at and text.count(note) == 1


def test_a_page_that_cannot_be_written_is_told(folder, tmp_path):
    seen = doctor.examine(folder, Cropping(64))
    with pytest.raises(UserError, match=r"contact_sheet: .* cannot be written"):
        contact_sheet.write(tmp_path / "no" / "s.html", folder, seen)


RULES = {
    "square": Cropping(64),
    "squashed": Cropping(64, center_crop=False),
    "crops": Cropping(64, random_crop=True),
    "buckets": Cropping(64, enable_bucket=True, bucket_reso_steps=8, random_crop=True),
    "merged": Cropping(
        64, enable_bucket=True, bucket_reso_steps=8, random_crop=True, max_buckets=1
    ),
}


def draw_masked(folder, name, size, source):
    """The concept is red, what surrounds it blue or transparent."""
    width, height = size
    concept = np.zeros((height, width), bool)
    concept[: height // 2, : width // 2] = concept[height // 2 :, width // 2 :] = True
    pixels = np.where(concept[..., None], (220, 60 + 5 * name, 60), (60, 60, 220))
    picture = Image.fromarray(pixels.astype(np.uint8))
    mask = Image.fromarray(concept.astype(np.uint8) * 255)
    if source == "alpha_mask":
        picture.putalpha(mask)
    picture.save(folder / f"{name}.png")
    if source == "conditioning_data_dir":
        mask.save(folder.parent / "masks" / f"{name}.webp", lossless=True)
    elif source == "beside":
        mask.save(folder / f"{name}-masklabel.png")


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("source", ["beside", "alpha_mask", "conditioning_data_dir"])
def test_each_crop_is_shown_with_its_mask(source, rules, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "masks").mkdir()
    for number, size in enumerate([(200, 120), (130, 230), (128, 128), (64, 300)]):
        draw_masked(folder, number, size, source)
    draw(folder / "unmasked.png", (110, 80))
    where = {"alpha_mask": True, "conditioning_data_dir": tmp_path / "masks"}
    given = {key: where[key] for key in where if key == source}
    seen = doctor.examine(folder, RULES[rules], masks.Source(**given))
    contact_sheet.write(tmp_path / "s.html", folder, seen)
    *masked, (whole) = figures((tmp_path / "s.html").read_text())
    assert len(masked) == 4 and "no mask" in whole
    crops = seen.pictures.cuts[3].corners
    assert len(images(masked[3])) == 2 * len({*crops})
    for figure in masked:
        shown = images(figure)
        for plain, dark in zip(shown[::2], shown[1::2], strict=True):
            plain, dark = plain.astype(float), dark.astype(float)
            red = (plain[..., 0] > 190) & (plain[..., 2] < 90)
            other = (plain[..., 2] > 190) & (plain[..., 1:].min(-1) > 40)
            # All but edges; a crop at the end may be of one colour or two.
            assert (red | other).mean() > 0.75 and red.any()
            assert np.abs(dark - plain)[red].mean() < 8
            if other.any():
                assert np.abs(dark - 0.2 * plain)[other].mean() < 12
        assert other.any()


def test_a_faulty_mask_is_told_at_its_picture(tmp_path):
    folder = tmp_path / "pictures"
    for seed in range(3):
        draw(folder / f"{seed}.png", seed=seed)
    Image.new("L", (64, 63), 255).save(folder / "0-masklabel.png")
    Image.new("L", (64, 64), 255).save(folder / "1-masklabel.png")
    contact_sheet.write(
        tmp_path / "s.html", folder, doctor.examine(folder, RULES["square"])
    )
    text = (tmp_path / "s.html").read_text()
    faulty, masked, without = figures(text)
    assert "mask of 0.png: expected 64x64 px" in faulty
    assert text.count("mask of 0.png") == 1
    assert "mask not read" in faulty and "no mask" not in faulty
    assert len(images(masked)) == 2 and "not read" not in masked
    assert "no mask" in without and "not read" not in without
