"""What `python -m ti_flax.data` says of a folder, and with which exit code."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from pydantic import ValidationError

from ti_flax.config.mask_keys import MaskKeys
from ti_flax.data import command, doctor, masks
from ti_flax.data.buckets import Cropping
from ti_flax.runtime import errors


def draw(seed):
    """A picture with large shapes, as photos have; others of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(3):
        draw(number).save(place / f"{number}.png")
    return place


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
        errors.run(command.main)
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


def mask(path, size=(96, 96), top=255, bottom=0):
    values = np.full(size[::-1], bottom, np.uint8)
    values[: size[1] // 2] = top
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def alpha(folder, name, **values):
    mask(folder.parent / "masks" / "alpha.bmp", **values)
    picture = Image.open(folder / name).convert("RGB")
    picture.putalpha(Image.open(folder.parent / "masks" / "alpha.bmp"))
    picture.save(folder / name)


def mask_all(folder, flag):
    """Each picture has the mask that the flag reads."""
    for number in range(3):
        if flag == "alpha_mask":
            alpha(folder, f"{number}.png")
        else:
            mask(folder.parent / "masks" / f"{number}.bmp")


def given(folder, flag):
    if flag == "alpha_mask":
        return ["--alpha_mask"]
    return ["--conditioning_data_dir", folder.parent / "masks"]


CROPPINGS = {
    "square": [],
    "squashed": ["--no_center_crop"],
    "crops": ["--random_crop"],
    "buckets": ["--enable_bucket", "--bucket_reso_steps", 8, "--random_crop"],
}


@pytest.mark.parametrize("cropping", CROPPINGS)
@pytest.mark.parametrize("flag", ["alpha_mask", "conditioning_data_dir"])
def test_masks_are_read_from_where_the_flag_says(
    flag, cropping, folder, monkeypatch, capsys
):
    mask_all(folder, flag)
    mask(folder / "0-masklabel.png", size=(9, 9))  # would be a fault
    arguments = [folder, "--resolution", 64, *CROPPINGS[cropping]]
    code = run(monkeypatch, *arguments, *given(folder, flag))
    told = capsys.readouterr().out
    assert f"masks: of 3 pictures, read with masked_loss and {flag}\n" in told
    lines = [line for line in told.splitlines() if "mask" in line]
    if flag == "alpha_mask":  # that it is put on white is a note
        assert code == 1 and len(lines) == 4
        assert all(line.endswith("(alpha_mask: a mask)") for line in lines[:3])
    else:
        assert code == 0 and len(lines) == 1
    assert run(monkeypatch, *arguments) == 1
    assert "mask of 0.png: expected 96x96 px" in capsys.readouterr().out


def wrong_size(folder):
    mask(folder.parent / "masks" / "1.bmp", size=(96, 95))


def unreadable(folder):
    (folder.parent / "masks" / "1.bmp").write_bytes(b"no picture")


def black(folder):
    mask(folder.parent / "masks" / "1.bmp", top=0)


def black_where_it_is_used(folder):
    """The middle square of a wide picture is; white are its edges."""
    draw(1).resize((300, 96)).save(folder / "1.png")
    values = np.zeros((96, 300), np.uint8)
    values[:, :90] = values[:, -90:] = 255
    Image.fromarray(values).save(folder.parent / "masks" / "1.bmp")


def missing(folder):
    (folder.parent / "masks" / "1.bmp").unlink()


def all_missing(folder):
    for number in range(3):
        (folder.parent / "masks" / f"{number}.bmp").rename(
            folder.parent / f"masks/of {number}.bmp"
        )


def all_white(folder):
    for number in range(3):
        mask(folder.parent / "masks" / f"{number}.bmp", bottom=255)


def transparent_all_over(folder):
    alpha(folder, "1.png", top=0)


def opaque(folder):
    draw(1).save(folder / "1.png")


def all_opaque(folder):
    for number in range(3):
        draw(number).save(folder / f"{number}.png")


MASK_FAULTS = {
    wrong_size: "mask of 1.png: expected 96x96 px as the picture has, found 96x95",
    unreadable: "mask of 1.png: empty, damaged or not a picture",
    black: "mask of 1.png: it is all black where the picture is used",
    black_where_it_is_used: "mask of 1.png: it is all black where the picture is used",
    missing: "no mask for 1.png; learned whole",
    all_missing: masks.NONE_FOUND,
    all_white: masks.NONE_FOUND,
    transparent_all_over: "mask of 1.png: it is all transparent where the picture is",
    opaque: "no mask for 1.png; learned whole",
    all_opaque: masks.NONE_FOUND,
}
OF_ALPHA = (transparent_all_over, opaque, all_opaque)


@pytest.mark.parametrize("change", MASK_FAULTS, ids=lambda change: change.__name__)
def test_faults_of_masks_are_told(change, folder, monkeypatch, capsys):
    flag = "alpha_mask" if change in OF_ALPHA else "conditioning_data_dir"
    mask_all(folder, flag)
    change(folder)
    arguments = [folder, "--resolution", 64, *given(folder, flag)]
    assert run(monkeypatch, *arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    (told,) = (
        line
        for line in lines
        if "mask" in line and "put on white" not in line and "masks: " not in line
    )
    assert told.startswith(MASK_FAULTS[change])


@pytest.mark.parametrize("flagged", [False, True])
def test_each_faulty_mask_is_told_and_the_others_are_read(flagged, folder):
    draw(3).save(folder / "3.png")
    files = [folder / f"{number}-masklabel.png" for number in range(3)]
    if flagged:
        files = [folder.parent / "masks" / f"{number}.png" for number in range(3)]
    mask(files[0], size=(95, 96))
    mask(files[1])
    mask(files[2], top=0)
    keys = {"conditioning_data_dir": folder.parent / "masks"} if flagged else {}
    seen = doctor.examine(folder, Cropping(64), masks.Source(**keys))
    begin = [
        "no mask for 3.png; learned whole",
        "mask of 0.png: expected",
        "mask of 2.png: it is all black",
    ]
    assert len(seen.faults) == 3
    assert all(map(str.startswith, seen.faults, begin))
    assert {name: each is None for name, each in seen.masks.items()} == {
        "0.png": True,
        "1.png": False,
        "2.png": True,
    }


def test_a_faulty_alpha_does_not_hide_which_pictures_are_opaque(folder):
    alpha(folder, "0.png", top=0)
    alpha(folder, "1.png")
    seen = doctor.examine(folder, Cropping(64), masks.Source(alpha_mask=True))
    told = [fault for fault in seen.faults if "put on white" not in fault]
    assert told[0] == "no mask for 2.png; learned whole"
    assert told[1].startswith("mask of 0.png: it is all transparent")
    assert sorted(seen.masks) == ["0.png", "1.png"] and len(told) == 2


@pytest.mark.parametrize("flag", ["alpha_mask", "conditioning_data_dir"])
def test_a_transparent_picture_names_the_flag_that_shows_its_alpha(flag, folder):
    transparent(folder)
    mask_all(folder, "conditioning_data_dir")
    told = "9.png: transparency put on white (alpha_mask: a mask)"
    assert examine(folder)[0] == f"{told}; see it with --alpha_mask"
    source = masks.Source(**{flag: flag == "alpha_mask" or folder.parent / "masks"})
    assert doctor.examine(folder, Cropping(64), source).faults[0] == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--conditioning_data_dir", "no/folder"],
            "conditioning_data_dir: expected a folder of masks, found no/folder",
        ),
        (["--conditioning_data_dir", ""], "expected a path, found an empty text"),
        (
            ["--conditioning_data_dir=.", "--alpha_mask"],
            "expected alpha_mask or conditioning_data_dir, found both; remove one",
        ),
    ],
)
def test_a_wrong_source_of_masks_is_a_mistake(
    arguments, told, folder, monkeypatch, capsys
):
    assert run(monkeypatch, folder, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_two_sources_of_masks_are_refused_as_in_a_run(folder, monkeypatch, capsys):
    keys = {"alpha_mask": True, "conditioning_data_dir": folder}
    with pytest.raises(ValidationError) as raised:
        MaskKeys(masked_loss=True, **keys)
    run(monkeypatch, folder, "--alpha_mask", "--conditioning_data_dir", folder)
    line = capsys.readouterr().err.removeprefix("error: ").strip()
    assert line and line in str(raised.value)


def test_a_path_begins_at_home_as_in_a_run(folder, monkeypatch, capsys):
    mask_all(folder, "conditioning_data_dir")
    monkeypatch.setenv("HOME", str(folder.parent))
    arguments = [folder, "--resolution", 64, "--conditioning_data_dir", "~/masks"]
    assert run(monkeypatch, *arguments) == 0
    assert "masks: of 3 pictures" in capsys.readouterr().out
