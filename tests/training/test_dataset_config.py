"""kohya's dataset.toml from the command line to rows."""

import contextlib
import logging
import shutil
import sys

import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.config.run_config import load_config
from ti_flax.data import command
from ti_flax.formats import find
from ti_flax.training import run
from ti_flax.training.inputs import read_inputs


@pytest.fixture
def place(tmp_path):
    """Two folders of pictures with captions, below one of an unusual name."""
    folder = tmp_path / "my  [v1] sets"
    for seed, (name, count) in enumerate((("far", 1), ("near by", 2))):
        inside = runs.draw_pictures(folder / name, count, seed)
        for number in range(count):
            (inside / f"{number}.txt").write_text(f"{{}}, {name}, {number}")
    return folder


def load(model, toml, out, **keys):
    given = runs.keys(model, "unused", out, max_train_steps=2, **keys)
    del given["train_data_dir"], given["resolution"], given["train_batch_size"]
    return load_config([f"--dataset_config={toml}", *runs.to_argv(given)])


def write_toml(folder, *repeats, regular=""):
    tables = [
        f"[[datasets.subsets]]\nimage_dir = '{folder / name}'\nnum_repeats = {count}\n"
        for name, count in zip(("near by", "far"), repeats, strict=True)
    ]
    path = folder / "data set.toml"
    head = "[general]\ncaption_extension = '.txt'\nshuffle_caption = true\n"
    head += "[[datasets]]\nresolution = [16, 16]\nbatch_size = 4\n"
    path.write_text(head + "".join(tables) + regular)
    return path


def test_rows_are_those_of_kohyas_folders(
    place, tiny_model, tmp_path, caplog, monkeypatch
):
    runs.skip_networks(monkeypatch)
    regular = "[[datasets.subsets]]\nimage_dir = 'class'\nis_reg = true\n"
    toml = write_toml(place, 3, 2, regular=regular)
    config = load(tiny_model, toml, tmp_path / "toml")
    assert "is_reg pictures (class) are left out" in caplog.text
    caplog.set_level(logging.INFO, "ti_flax")
    rows = run.train_concepts(config, progress=False)[0].rows
    assert "count several times: far 2, near by 3" in caplog.text
    numbered = tmp_path / "numbered"
    shutil.copytree(place / "far", numbered / "2_far")
    shutil.copytree(place / "near by", numbered / "3_near by")
    plain = runs.make_config(
        *(tiny_model, numbered, tmp_path / "plain"),
        caption_source="txt",
        shuffle_caption=True,
        train_batch_size=4,
        max_train_steps=2,
    )
    expected = run.train_concepts(plain, progress=False)[0].rows
    assert rows.keys() == expected.keys()
    for name, each in rows.items():
        np.testing.assert_array_equal(each, expected[name])
    written = find.load_embedding(tmp_path / "toml" / find.SAFETENSORS_NAME)
    np.testing.assert_array_equal(written.rows["text_encoder"], rows["text_encoder"])
    # What the run notes of itself reads again as the same.
    again = load_config([f"--config={tmp_path / 'toml' / 'config.yaml'}"])
    assert again.folders == config.folders == (("near by", 3), ("far", 2))


def test_a_run_is_not_resumed_with_other_shares(place, tiny_model, tmp_path):
    def fingerprints(*repeats):
        config = load(tiny_model, write_toml(place, *repeats), tmp_path / "out")
        return read_inputs(config).fingerprints()

    once = fingerprints(1, 1)
    assert fingerprints(7, 7) == once
    other = fingerprints(2, 1)
    assert {key for key in once if once[key] != other[key]} == {"train_data_dir"}


@pytest.mark.parametrize(
    ("repeats", "told"),
    [
        ((1, 1), "pictures are of sub-folders: far, near by"),
        ((1, 2), "pictures of sub-folders count several times: far 2, near by 1"),
    ],
)
def test_what_is_read_is_told(repeats, told, place, tiny_model, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ti_flax")
    read_inputs(load(tiny_model, write_toml(place, *repeats), tmp_path / "out"))
    lines = [m for m in caplog.messages if "sub-folders" in m]
    assert lines == [f"train_data_dir: {told}"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_of_both_folders_are_found(mirrored, place, tiny_model, tmp_path):
    masks = tmp_path / "masks of [it]"
    for name in ("near by", "far"):
        inside = masks / name if mirrored else masks
        inside.mkdir(parents=True, exist_ok=True)
        for picture in (place / name).glob("*.png"):
            with Image.open(picture) as opened:
                grey = Image.new("L", opened.size, 99)
            grey.save(inside / picture.name)
    text = write_toml(place, 1, 1).read_text()
    for name in ("near by", "far"):
        where = masks / name if mirrored else masks
        line = f"image_dir = '{place / name}'\n"
        text = text.replace(line, f"{line}conditioning_data_dir = '{where}'\n")
    (place / "masked.toml").write_text(text)
    config = load(tiny_model, place / "masked.toml", tmp_path / "out")
    assert config.masked_loss and config.conditioning_data_dir == masks
    assert all((mask == 99).all() for mask in read_inputs(config).masks)


def test_the_look_before_a_run_reads_what_the_run_reads(
    place, tiny_model, tmp_path, monkeypatch
):
    toml, seen = write_toml(place, 3, 2), []
    monkeypatch.setattr(
        command.contact_sheet, "write", lambda page, folder, found: seen.append(found)
    )
    given = ["ti_flax.data", f"--dataset_config={toml}", "--contact_sheet=none"]
    monkeypatch.setattr(sys, "argv", given)
    with contextlib.suppress(SystemExit):
        command.main()
    inputs = read_inputs(load(tiny_model, toml, tmp_path / "out"))
    (found,) = seen
    assert found.pictures.fingerprints() == inputs.pictures.fingerprints()
    np.testing.assert_array_equal(found.pictures.order(), inputs.listed)
    assert found.captions.source == "txt" and all(found.captions.texts)
