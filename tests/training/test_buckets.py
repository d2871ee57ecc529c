"""A run on pictures of several sizes: told, learned by, kept through a resumed run."""

import logging

import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.runtime import errors
from ti_flax.training import run
from ti_flax.training.inputs import read_inputs

# The tiny model's pictures have 32 pixels a side; masks, captions and crops go along.
KEYS = {
    "enable_bucket": True,
    "bucket_reso_steps": 8,
    "random_crop": True,
    "crop_variants": 2,
    "masked_loss": True,
    "shuffle_caption": True,
    "caption_variants": 2,
}


@pytest.fixture(
    autouse=True, params=["fakes", pytest.param("networks", marks=pytest.mark.slow)]
)
def networks(request, monkeypatch):
    """With the networks a run compiles for a minute; step/test_buckets.py has them."""
    if request.param == "fakes":
        runs.skip_networks(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    random = np.random.default_rng(0)
    for number, size in enumerate([(48, 24), (40, 40), (50, 24), (96, 48)]):
        pixels = random.integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"[name], red, blue, {number}")
        mask = np.full(size[::-1], 255, np.uint8)
        mask[: size[1] // 3] = 0
        Image.fromarray(mask).save(place / f"{number}-masklabel.png")
    return place


@pytest.fixture
def config(tiny_model, folder, tmp_path):
    def make(out="out", **keys):
        return runs.make_config(tiny_model, folder, tmp_path / out, **KEYS | keys)

    return make


def rows(config):
    (learned,) = run.train_concepts(config, progress=False)
    (found,) = learned.rows.values()
    return found


def test_a_run_of_several_sizes_is_told_and_resumes_to_the_bit(config, caplog):
    caplog.set_level(logging.INFO, "ti_flax")
    whole = rows(config("whole", max_train_steps=6, checkpointing_steps=3))
    told = [r.getMessage() for r in caplog.records if " buckets: " in r.getMessage()]
    side = config().resolution
    inputs = read_inputs(config())
    sizes = inputs.pictures.buckets()
    assert len(sizes) == 2 and (side, side) in sizes
    assert told[0] == "train_data_dir: 2 buckets: " + ", ".join(
        f"{width}x{height} ({len(each)})" for (width, height), each in sizes.items()
    )
    # Another number of dispatches, and a stop between.
    rows(config("parts", max_train_steps=3, checkpointing_steps=3, validation_steps=1))
    resumed = rows(config("parts", max_train_steps=6, resume_from_checkpoint="latest"))
    np.testing.assert_array_equal(resumed, whole)
    squares = rows(config("squares", max_train_steps=6, enable_bucket=False))
    assert np.abs(squares - whole).max() > 1e-6


def test_a_resumed_run_keeps_its_buckets(config):
    rows(config(max_train_steps=2, checkpointing_steps=2))
    changed = config(max_train_steps=4, resume_from_checkpoint="latest", max_buckets=1)
    with pytest.raises(errors.UserError, match="max_buckets was 4, is 1"):
        run.train_concepts(changed, progress=False)


def test_sizes_that_cannot_be_are_refused(config):
    with pytest.raises(ValueError, match="min_bucket_reso <= max_bucket_reso"):
        config(min_bucket_reso=64, max_bucket_reso=32)
    with pytest.raises(ValueError, match="bucket_reso_steps"):
        config(bucket_reso_steps=12)
