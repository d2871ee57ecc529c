"""The sizes that are compiled: those of the folder, or of usual aspect ratios."""

import dataclasses

import pytest
import runs
from PIL import Image

from ti_flax.aot.buckets import run_shapes
from ti_flax.models import base_model
from ti_flax.quickstart import settings
from ti_flax.runtime.errors import UserError
from ti_flax.step.abstract import BucketShape


@pytest.fixture(scope="module")
def model():
    return base_model.open_model(str(settings.MODEL))


def config(folder, **keys):
    given = {"resolution": 64, "enable_bucket": True, "bucket_reso_steps": 8}
    model = str(settings.MODEL)
    return runs.make_config(model, folder, folder.parent / "out", **given | keys)


def shapes(found, model):
    side = model.family.downscale
    return [(shape.height * side, shape.width * side) for shape in found.buckets]


def test_without_buckets_there_is_the_square(tmp_path, model):
    (found,) = run_shapes(config(tmp_path / "no", enable_bucket=False), model).buckets
    side = 64 // model.family.downscale
    assert found == BucketShape(side, side)


def test_a_folder_has_its_own(tmp_path, model):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(100, 100), (160, 90), (90, 90)]):
        Image.new("RGB", size, (number * 50,) * 3).save(folder / f"{number}.png")
    assert shapes(run_shapes(config(folder), model), model) == [(64, 64), (48, 80)]


def test_folders_of_subsets_have_theirs(tmp_path, model):
    for number, size in enumerate([(100, 100), (160, 90), (90, 160)]):
        folder = tmp_path / "pictures" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", size, (number * 50,) * 3).save(folder / "0.png")
    for subsets, sizes in (
        (["0", "2:1"], [(64, 64), (48, 80)]),
        (["2"], [(80, 48)]),
    ):
        keys = config(tmp_path / "pictures", subsets=subsets)
        assert shapes(run_shapes(keys, model), model) == sizes


@pytest.mark.parametrize(("most", "count"), [(1, 1), (4, 4), (64, 7)])
def test_without_a_folder_there_are_those_of_usual_pictures(
    tmp_path, model, most, count
):
    found = shapes(run_shapes(config(tmp_path / "no", max_buckets=most), model), model)
    assert len(found) == len(set(found)) <= count and found[0] == (64, 64)
    assert most == 1 or len(found) >= 4
    assert all(height * width <= 64**2 for height, width in found)


def test_steps_that_are_no_latents_are_named(tmp_path, model):
    family = dataclasses.replace(model.family, downscale=16)
    keys = config(tmp_path / "no", bucket_reso_steps=8)
    with pytest.raises(UserError, match="bucket_reso_steps: 8 is not a multiple of 16"):
        run_shapes(keys, model._replace(family=family))
