"""What `python -m ti_flax.data` says of a folder, and with which exit code."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ti_flax.data import doctor
from ti_flax.data.buckets import Cropping
from ti_flax.runtime import errors


def draw(seed):
    """A picture with large shapes, as photos have; others of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        draw(number).save(tmp_path / f"{number}.png")
    return tmp_path


def examine(folder):
    return doctor.examine(folder, Cropping(64)).faults


def test_a_good_folder_has_no_faults(folder):
    assert examine(folder) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda p: ImageEnhance.Brightness(p).enhance(1.2),
            "the same as 0.png;",
        ),
        (lambda p: p.resize((80, 80)), "the same as 0.png;"),
        (
            lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "the same as 0.png, mirrored;",
        ),
    ],
    ids=["brighter", "smaller", "mirrored"],
)
def test_near_duplicates_are_named(folder, change, told):
    change(draw(0)).save(folder / "9.png")
    (fault,) = examine(folder)
    assert fault.startswith("9.png: ") and told in fault


def test_pictures_of_one_grey_are_no_duplicates(folder):
    for number, grey in ((7, 20), (8, 200)):
        Image.new("RGB", (96, 96), (grey,) * 3).save(folder / f"{number}.png")
    assert examine(folder) == []


def turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(5).save(folder / "9.jpg", exif=exif)


def transparent(folder):
    picture = draw(5).convert("RGBA")
    picture.putalpha(128)
    picture.save(folder / "9.png")


def hidden(folder):
    (folder / ".DS_Store").write_bytes(b"")


def small(folder):
    draw(5).resize((20, 20)).save(folder / "9.png")


def damaged(folder):
    (folder / "9.png").write_bytes(b"no picture")


def captioned(folder):
    (folder / "0.txt").write_text("a photo of a toy")


def captioned_twice(folder):
    (folder / "0.txt").write_text("a photo of a toy")
    (folder / "0.caption").write_text("a photo of a toy")


def wordy(folder):
    for number in range(3):
        (folder / f"{number}.txt").write_text("{} " + "toy " * (73 + number))


def few(folder):
    (folder / "2.png").unlink()


FAULTS = {
    turned: "9.jpg: turned as its EXIF orientation says",
    transparent: "9.png: transparency put on white (alpha_mask: a mask)",
    hidden: "skipped 1 hidden: .DS_Store",
    small: "9.png: enlarged from 20x20 px",
    damaged: "skipped 9.png: empty, damaged or not a picture",
    captioned: "no caption for 1.png, 2.png; templates take their place",
    captioned_twice: "expected captions of one kind",
    wordy: "2.png: its caption has 76 words",
    few: "only 2 to train on",
}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ti_flax.data", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        errors.run(doctor.main)
        sys.exit(0)
    return ended.value.code


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_each_fault_is_said_and_the_exit_code_tells(
    change, folder, monkeypatch, capsys
):
    assert run(monkeypatch, folder, "--resolution", 64) == 0
    assert "3 pictures to train on, 0 notes" in capsys.readouterr().out
    change(folder)
    assert run(monkeypatch, folder, "--resolution", 64) == 1
    assert FAULTS[change] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["no/folder"], "expected a folder"), ([".", "--resolution", "0"], "resolution")],
)
def test_nothing_to_train_on_is_a_mistake(arguments, told, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_captions_are_counted(folder, monkeypatch, capsys):
    run(monkeypatch, folder, "--resolution", 64)
    assert "captions: none, prompts come from templates" in capsys.readouterr().out
    for number, text in enumerate(("a [name]", "a toy", "a {} and a toy")):
        (folder / f"{number}.txt").write_text(text)
    assert run(monkeypatch, folder, "--resolution", 64) == 0
    told = "captions: of 3 pictures (txt), 2 with [name]"
    assert told in capsys.readouterr().out


def test_it_runs_as_a_module(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ti_flax.data", str(folder)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ti_flax.data", run_name="__main__")
    assert ended.value.code == 1  # 96 px are enlarged to 512
    assert "enlarged from 96x96 px" in capsys.readouterr().out


def test_masks_are_counted_and_those_that_do_not_fit_told(tmp_path, capsys):
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{seed}.png")
    assert doctor.describe_masks(doctor.examine(tmp_path, Cropping(64)).masks) == (
        "masks: none"
    )
    Image.new("L", (64, 64), 255).save(tmp_path / "0-masklabel.png")
    seen = doctor.examine(tmp_path, Cropping(64))
    assert seen.faults == ["no mask for 1.png, 2.png; learned whole"]
    told = "masks: of 1 pictures, read with masked_loss"
    assert doctor.describe_masks(seen.masks) == told
    Image.new("L", (64, 63), 255).save(tmp_path / "1-masklabel.png")
    faults = doctor.examine(tmp_path, Cropping(64)).faults
    assert faults[0] == "no mask for 2.png; learned whole"
    assert faults[1].startswith("mask of 1.png: expected 64x64 px as the picture has")
