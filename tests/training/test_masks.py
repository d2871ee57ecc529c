"""Masks of pictures: found, told, learned by, and kept through a resumed run."""

import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.data import masks
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.runtime import errors
from ti_flax.training import run
from ti_flax.training.inputs import read_inputs


@pytest.fixture
def folder(tmp_path):
    """Three pictures, two of them with a mask of two halves."""
    pictures = runs.draw_pictures(tmp_path / "pictures")
    for number in (0, 1):
        write_mask(pictures / f"{number}-masklabel.png")
    return pictures


def write_mask(path, top=255, bottom=0):
    values = np.full((20, 24), bottom, np.uint8)
    values[:10] = top
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def config(tiny_model, folder, tmp_path):
    def make(out="out", **keys):
        return runs.make_config(tiny_model, folder, tmp_path / out, **keys)

    return make


def test_masks_that_nobody_asked_for_are_told_and_not_read(config, folder, caplog):
    inputs = read_inputs(config())
    assert inputs.masks is None and len(inputs.pictures.names) == 3
    assert "(0-masklabel.png, 1-masklabel.png) and are not read" in caplog.text
    for path in folder.glob("*-masklabel.png"):
        path.unlink()
    assert read_inputs(config()).fingerprints() == inputs.fingerprints()


def test_a_picture_without_a_mask_is_learned_whole_and_named(config, caplog):
    inputs = read_inputs(config(masked_loss=True))
    assert (inputs.masks[2] == 255).all() and not (inputs.masks[0] == 255).all()
    assert "masked_loss: no mask, or one all white: 2.png" in caplog.text
    weights = masks.loss_weights(np.stack(inputs.masks), 4, True, 0.1, False)
    np.testing.assert_allclose(weights[0, :, 0], 1)
    np.testing.assert_allclose(weights[0, :, -1], 0.1)
    np.testing.assert_allclose(weights[2], 1)


@pytest.mark.parametrize("source", ["folder", "alpha"])
def test_masks_come_from_where_the_keys_say(source, config, folder, tmp_path):
    if source == "folder":
        write_mask(tmp_path / "masks" / "1.png", top=0, bottom=255)
        keys = {"conditioning_data_dir": tmp_path / "masks"}
    else:
        picture = Image.open(folder / "1.png").convert("RGBA")
        alpha = np.zeros((20, 24), np.uint8)
        alpha[10:] = 255
        picture.putalpha(Image.fromarray(alpha))
        picture.save(folder / "1.png")
        keys = {"alpha_mask": True}
    masks = read_inputs(config(masked_loss=True, **keys)).masks
    assert all((masks[number] == 255).all() for number in (0, 2))
    (mask,) = masks[1]
    assert (mask[0] == 0).all() and (mask[-1] == 255).all()


def test_a_transparent_picture_offers_its_alpha(tmp_path):
    folder = runs.draw_pictures(tmp_path / "pictures", count=1)
    Image.new("RGBA", (32, 32), (9, 9, 9, 99)).save(folder / "a.png")
    (note,) = read_pictures(folder, Cropping(16)).notes
    assert note == "a.png: transparency put on white (alpha_mask: a mask)"


CHANGES = {
    "another mask": lambda f: write_mask(f / "0-masklabel.png", top=0, bottom=255),
    "one more": lambda f: write_mask(f / "2-masklabel.png"),
    "one less": lambda f: (f / "0-masklabel.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_with_other_masks(change, config, folder):
    before = read_inputs(config(masked_loss=True)).fingerprints()
    CHANGES[change](folder)
    after = read_inputs(config(masked_loss=True)).fingerprints()
    assert [key for key in before if before[key] != after[key]] == ["masked_loss"]


def test_a_resumed_run_with_masks_equals_a_whole_one(config, tmp_path, monkeypatch):
    runs.skip_networks(monkeypatch)

    def train(out, **keys):
        keys = {"masked_loss": True, "normalize_masked_area_loss": True} | keys
        run.train_concepts(config(out, **keys), progress=False)

    train("whole")
    train("parts", max_train_steps=2)
    train("parts", resume_from_checkpoint="latest")
    whole, parts = (runs.content(tmp_path / name) for name in ("whole", "parts"))
    # Each part ends in a look.
    assert runs.without_looks(parts) == runs.without_looks(whole)
    train("plain", masked_loss=False, normalize_masked_area_loss=False)
    plain = runs.content(tmp_path / "plain")
    assert plain["metrics.jsonl"] != whole["metrics.jsonl"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"alpha_mask": True}, "expected masked_loss true with alpha_mask"),
        (
            {"conditioning_data_dir": "masks"},
            "expected masked_loss true with conditioning_data_dir",
        ),
        (
            {
                "masked_loss": True,
                "alpha_mask": True,
                "conditioning_data_dir": "masks",
            },
            "expected alpha_mask or conditioning_data_dir, found both",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, told, config):
    with pytest.raises(ValueError, match=told):
        config(**keys)


def test_no_mask_at_all_is_a_mistake(config):
    with pytest.raises(errors.UserError, match="found no mask; make some"):
        read_inputs(config(masked_loss=True, alpha_mask=True))
