"""Aspect buckets: kohya's sizes and choices, nothing but the edges cut away."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from ti_flax.data import buckets, command, crop, masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.runtime.errors import UserError

# What sd-scripts prints as its buckets, of resolution 512 (256 to 1024) and of 1024
# (512 to 2048), steps of 64: those at least as wide as high; the others are turned.
PUBLISHED = {
    512: "512x512 576x448 640x384 704x320 768x320 832x256 896x256 960x256 1024x256",
    1024: "1024x1024 1088x960 1152x896 1216x832 1280x768 1344x768 1408x704 1472x704 "
    "1536x640 1600x640 1664x576 1728x576 1792x576 1856x512 1920x512 1984x512 2048x512",
}


@pytest.mark.parametrize("resolution", PUBLISHED)
def test_the_sizes_are_those_that_sd_scripts_prints(resolution):
    wide = [tuple(map(int, s.split("x"))) for s in PUBLISHED[resolution].split()]
    expected = {*wide, *(size[::-1] for size in wide)}
    assert buckets.sizes(Cropping(resolution)) == sorted(expected)


@pytest.mark.parametrize("resolution", [256, 512, 640, 768, 1000, 1024])
@pytest.mark.parametrize("step", [8, 32, 64, 128])
@pytest.mark.parametrize("least", [None, 100, 256])
def test_sizes_are_whole_steps_within_their_bounds(resolution, step, least):
    rules = Cropping(resolution, min_bucket_reso=least, bucket_reso_steps=step)
    found = buckets.sizes(rules)
    for width, height in found:
        assert width % step == height % step == 0
        assert 0 < width * height <= resolution**2
        assert min(width, height) > (least or resolution // 2) - step
        assert max(width, height) < 2 * resolution + step
        assert (height, width) in found
    assert any(width == height for width, height in found)


@pytest.mark.parametrize(("resolution", "step"), [(32, 64), (56, 64), (8, 16)])
def test_a_step_above_the_resolution_is_one_line(folder, resolution, step):
    rules = Cropping(resolution, enable_bucket=True, bucket_reso_steps=step)
    with pytest.raises(UserError, match=f"at most the resolution, {resolution}, found"):
        read_pictures(folder, rules)


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((3000, 3000), (512, 512), (512, 512)),
        ((4000, 3000), (576, 448), (597, 448)),
        ((3000, 4000), (448, 576), (448, 597)),
        ((6000, 4000), (640, 384), (640, 427)),
        ((100, 75), (576, 448), (597, 448)),
        ((1920, 1080), (640, 384), (683, 384)),
        ((5000, 100), (1024, 256), (12800, 256)),
    ],
)
def test_a_picture_goes_to_the_nearest_aspect_ratio(size, bucket, resized):
    assert buckets.choose(*size, Cropping(512)) == buckets.Fit(bucket, resized)


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        # Small enough: its own size, less what is no whole step.
        ((500, 300), (448, 256), (500, 300)),
        ((512, 512), (512, 512), (512, 512)),
        ((64, 64), (64, 64), (64, 64)),
        ((130, 2000), (128, 1984), (130, 2000)),
        # Too large: about the area, one side whole.
        ((4000, 3000), (512, 384), (512, 384)),
        ((3000, 4000), (384, 512), (384, 512)),
        ((2048, 2048), (512, 512), (512, 512)),
    ],
)
def test_without_upscaling_a_picture_keeps_its_size_or_is_made_smaller(
    size, bucket, resized
):
    rules = Cropping(512, bucket_no_upscale=True)
    assert buckets.choose(*size, rules) == buckets.Fit(bucket, resized)


def test_every_size_is_covered_and_never_stretched():
    for width, height in itertools.product([65, 200, 333, 1000, 4031], repeat=2):
        for no_upscale in (False, True):
            rules = Cropping(512, bucket_no_upscale=no_upscale)
            (across, down), resized = buckets.choose(width, height, rules)
            assert resized[0] >= across and resized[1] >= down
            ratio = (resized[0] / resized[1]) / (width / height)
            # A side of so many pixels is rounded by a half.
            assert abs(math.log(ratio)) < 1.0 / min(resized)
            if no_upscale:
                assert resized[0] <= width and resized[1] <= height


def test_the_smallest_buckets_are_merged_into_the_nearest():
    square, tall, taller, wide = (512, 512), (448, 576), (384, 640), (640, 384)
    chosen = [square] * 3 + [tall] * 2 + [taller] + [wide] * 4

    def merged(most):
        moved = buckets.merged(chosen, chosen, Cropping(512, max_buckets=most))
        numbers = [
            n for n, size in enumerate(chosen) if size in map(chosen.__getitem__, moved)
        ]
        assert sorted(moved) == numbers  # a bucket's pictures move together
        return {chosen[number]: target for number, target in moved.items()}

    assert merged(4) == {}
    assert merged(3) == {taller: tall}
    # Three of each: the first in order is given up.
    assert merged(2) == {taller: square, tall: square}
    assert merged(1) == dict.fromkeys((taller, tall, wide), square)


NO_UPSCALE = Cropping(512, enable_bucket=True, bucket_no_upscale=True, max_buckets=3)


@pytest.mark.parametrize(
    ("given_up", "kept", "goes_to"),
    [
        # The nearest ratio is not covered, or not by every side.
        ((300, 200), [(640, 384), (256, 256), (256, 128)], (256, 128)),
        ((300, 200), [(448, 256), (192, 192), (64, 128)], (192, 192)),
        ((300, 500), [(256, 512), (192, 448), (320, 448)], (192, 448)),
        # Of those that are covered the nearest ratio, not the largest.
        ((200, 600), [(192, 128), (64, 256), (128, 128)], (64, 256)),
        # None is covered: the nearest of all to the bucket that is given up, a square.
        ((100, 70), [(640, 384), (512, 512), (384, 640)], (512, 512)),
        # As large as a camera's: all are covered.
        ((6000, 4000), [(640, 384), (512, 512), (384, 640)], (640, 384)),
    ],
)
def test_without_upscaling_a_picture_goes_where_it_is_not_enlarged(
    given_up, kept, goes_to
):
    fit = buckets.choose(*given_up, NO_UPSCALE)
    chosen = [*(size for size in kept for _ in range(2)), fit.bucket]
    originals = [*chosen[:-1], given_up]
    assert buckets.merged(chosen, originals, NO_UPSCALE) == {6: goes_to}


@pytest.mark.parametrize("most", [2, 4, 7])
def test_no_picture_is_enlarged_that_covers_a_bucket(most):
    rules, needless = NO_UPSCALE._replace(max_buckets=most), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        originals = [(int(w), int(h)) for w, h in rng.integers(64, 900, (30, 2))]
        chosen = [buckets.choose(*size, rules).bucket for size in originals]

        def enlarged(after, originals=originals):
            pairs = zip(originals, after, strict=True)
            return [crop.covered(*size, to, rules).enlarged for size, to in pairs]

        def merged(chosen=chosen, originals=originals, **keys):
            moved = buckets.merged(chosen, originals, rules._replace(**keys))
            return [moved.get(number, size) for number, size in enumerate(chosen)]

        after = merged()
        assert len({*after}) == most < len({*chosen})
        for (width, height), larger in zip(originals, enlarged(after), strict=True):
            assert larger == (not any(w <= width and h <= height for w, h in after))
        needless += sum(enlarged(merged(bucket_no_upscale=False)))
        needless -= sum(enlarged(after))
    assert needless > 0  # by the nearest ratio alone


def ramp(width, height):
    """Red says the column, green the row: where a pixel came from."""
    across = np.tile(np.linspace(0, 250, width), (height, 1))
    down = np.tile(np.linspace(0, 250, height)[:, None], (1, width))
    return np.stack([across, down, 0 * down], -1).round().astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(160, 90), (90, 160), (77, 200)])
@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("random_crop", [False, True])
def test_the_sizes_that_sdxl_is_told_are_where_a_crop_is(
    width, height, bucketed, random_crop
):
    rules = Cropping(
        64, enable_bucket=bucketed, bucket_reso_steps=8, random_crop=random_crop
    )
    cut = crop.cut(width, height, rules)
    crops = cut.crops(Image.fromarray(ramp(width, height)))
    assert len(crops) == (4 if random_crop else 1)
    for image, views in zip(crops, cut.sizes(), strict=True):
        for view, seen in zip(views, (image, image[:, ::-1]), strict=True):
            full_height, full_width, top, left, down, across = view
            assert (full_height, full_width) == (height, width)
            assert seen.shape == (down, across, 3)
            # From the original: the middle of the crop, by its place and the scale.
            scale = max(cut.resized) / max(width, height)
            column = (left + across / 2) / scale / width
            if seen is not image:
                column = 1 - column
            row = (top + down / 2) / scale / height
            assert abs(image[..., 0].mean() / 250 - column) < 0.02
            assert abs(image[..., 1].mean() / 250 - row) < 0.02


def test_crops_are_spread_from_end_to_end():
    cut = crop.cut(64, 256, Cropping(64, random_crop=True, crop_variants=5))
    assert [top for top, _ in cut.corners] == [0, 48, 96, 144, 192]
    assert {left for _, left in cut.corners} == {0}
    assert cut.middle == 2


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    sizes = [(160, 90), (161, 90), (90, 160), (100, 100), (70, 200)]
    for number, size in enumerate(sizes):
        Image.fromarray(ramp(*size)).save(place / f"{number}.png")
    return place


RULES = Cropping(64, enable_bucket=True, bucket_reso_steps=8)


def test_a_folder_is_read_into_buckets(folder):
    pictures = read_pictures(folder, RULES)
    found = {size: numbers.tolist() for size, numbers in pictures.buckets().items()}
    assert found == {(32, 104): [4], (48, 80): [2], (64, 64): [3], (80, 48): [0, 1]}
    for name, image in zip(pictures.names, pictures.images, strict=True):
        # The whole ramp but for the edges of one direction.
        spans = [np.ptp(image[..., axis]) for axis in (0, 1)]
        assert max(spans) > 235 and min(spans) > 175, name


def test_few_buckets_are_kept_and_the_others_told(folder):
    pictures = read_pictures(folder, RULES._replace(max_buckets=2))
    assert [*pictures.buckets()] == [(48, 80), (80, 48)]
    told = [note for note in pictures.notes if note.startswith("bucket")]
    assert told == [
        "bucket 32x104 (1): cut to 48x80; max_buckets 4 would keep all buckets",
        "bucket 64x64 (1): cut to 48x80; max_buckets 4 would keep all buckets",
    ]


def notes_of(folder, rules, name):
    return [n for n in read_pictures(folder, rules).notes if n.startswith(f"{name}: ")]


@pytest.mark.parametrize("no_upscale", [False, True])
def test_a_picture_that_is_enlarged_by_a_merge_alone_is_told(tmp_path, no_upscale):
    for number, size in enumerate([(90, 70), (91, 70), (64, 64), (65, 64), (20, 240)]):
        Image.fromarray(ramp(*size)).save(tmp_path / f"{number}.png")
    rules = RULES._replace(bucket_no_upscale=no_upscale, min_bucket_reso=16)
    rules = rules._replace(max_bucket_reso=256)
    name, told = "4.png", ["4.png: enlarged from 20x240 px"]
    assert notes_of(tmp_path, rules, name) == []
    rules = rules._replace(max_buckets=2)
    assert notes_of(tmp_path, rules, name) == told
    (line,) = (n for n in read_pictures(tmp_path, rules).notes if "bucket" in n)
    assert "(1): cut to 64x64; max_buckets 3" in line


def test_a_picture_that_is_enlarged_but_for_a_merge_is_not_told(tmp_path):
    for number, size in enumerate([(288, 224), (144, 112), (144, 127)]):
        Image.fromarray(ramp(*size)).save(tmp_path / f"{number}.png")
    rules = Cropping(128, enable_bucket=True, bucket_reso_steps=16)
    told = ["2.png: enlarged from 144x127 px"]  # to 128x128
    assert notes_of(tmp_path, rules, "2.png") == told
    assert notes_of(tmp_path, rules._replace(max_buckets=1), "2.png") == []


def test_what_is_below_a_step_is_named(folder):
    rules = RULES._replace(bucket_no_upscale=True, bucket_reso_steps=64)
    Image.fromarray(ramp(40, 90)).save(folder / "5.png")
    (note,) = (n for n in read_pictures(folder, rules).notes if "5.png" in n)
    assert note == (
        "skipped 5.png: 40x90 px, less than bucket_reso_steps 64, and bucket_no_upscale"
    )


def test_masks_are_cut_as_their_pictures(folder):
    for number, size in enumerate([(160, 90), (161, 90), (90, 160)]):
        mask = Image.fromarray(ramp(*size)[..., 0])
        mask.save(folder / f"{number}-masklabel.png")
    pictures = read_pictures(folder, RULES._replace(random_crop=True))
    files = masks.beside(folder, pictures.names)
    found = masks.read_masks(files, pictures.names, pictures.cuts)
    for number in range(3):
        for mask, image in zip(found[number], pictures.crops[number], strict=True):
            assert mask.shape == image.shape[:2]
            np.testing.assert_allclose(mask.astype(float), image[..., 0], atol=3)
    weights = masks.loss_weights(np.stack(found[:2]), 8, True, 0.0, False)
    assert weights.shape == (2, 8, 6, 10)
    np.testing.assert_array_equal(weights[:, 1::2], weights[:, ::2, :, ::-1])
    corner = np.mean(found[1][3][:8, :8]) / 255
    assert weights[1, 6, 0, 0] == pytest.approx(corner, rel=1e-5)


def test_the_doctor_shows_buckets_and_crops(folder, tmp_path, monkeypatch, capsys):
    sheet = tmp_path / "sheet.html"
    flags = "--resolution 64 --enable_bucket --bucket_reso_steps 8 --random_crop"
    argv = ["ti_flax.data", str(folder), *flags.split(), f"--contact_sheet={sheet}"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1  # the ramps look alike
    text = sheet.read_text()
    assert "32 x 104 px, 48 x 80 px, 64 x 64 px, 80 x 48 px" in text
    assert text.count("data:image/jpeg") == 4 * 4 + 1  # the square has one crop
    assert "80 x 48 px of 160 x 90" in text
