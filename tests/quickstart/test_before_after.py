"""The quickstart: its pictures, its configuration and its sheet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.config import run_config
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.quickstart import contact_sheet, settings
from ti_flax.quickstart.critters import concept, world

REPOSITORY = Path(__file__).parents[2]
SIDE = 8
MINIMAL = {
    "pretrained_model_name_or_path": "m",
    "train_data_dir": "d",
    "placeholder_token": "<a>",
}


def test_pictures_are_what_the_code_draws():
    drawn = concept.draw_pictures()
    read = read_pictures(concept.FOLDER, Cropping(64))
    assert read.notes == ()
    np.testing.assert_array_equal(read.images, drawn)


def test_the_concept_is_new_to_the_base_model():
    assert concept.LOOK in world.HELD_OUT_LOOKS
    assert {*world.BACKGROUNDS} - {*concept.BACKGROUNDS} == {"black"}


def test_configuration_holds_in_any_folder(tmp_path, monkeypatch):
    from_repository = run_config.load_config(
        ["--config", str(REPOSITORY / "configs" / "quickstart.yaml")]
    )
    monkeypatch.chdir(tmp_path)
    packaged = settings.load_config(["--seed", "7"])
    assert packaged.train_data_dir.is_absolute() and packaged.train_data_dir.is_dir()
    assert REPOSITORY / from_repository.train_data_dir == packaged.train_data_dir
    assert packaged == from_repository.model_copy(
        update={
            "pretrained_model_name_or_path": str(settings.MODEL),
            "train_data_dir": settings.PICTURES,
            "seed": 7,
        }
    )


def test_the_notebook_learns_the_quickstarts_word_as_the_quickstart():
    notebook = json.loads((REPOSITORY / "launch" / "colab.ipynb").read_text())
    source = "".join("".join(cell["source"]) + "\n" for cell in notebook["cells"])
    quick = eval(re.search(r"^quick = (\{.*?^\})", source, re.M | re.S)[1])
    keys = run_config.TrainingKeys.model_fields.keys() | quick.keys()
    config = settings.load_config([]).model_dump()
    # The form has its own steps and examples, and a checkpoint folder a run.
    ours = {key: value for key, value in config.items() if key in keys}
    default = {**run_config.Config(**MINIMAL).model_dump(), **quick}
    theirs = {key: value for key, value in default.items() if key in keys}
    freed = ("train_batch_size", "max_train_steps")
    assert {**ours, **dict.fromkeys(freed)} == {**theirs, **dict.fromkeys(freed)}


def colour(value):
    return Image.new("RGB", (SIDE, SIDE), value)


def test_sheet_holds_every_picture_and_grows_with_notes():
    red, blue = (200, 0, 0), (0, 0, 200)
    rows = [
        contact_sheet.Row("first", [colour(red)] * 3),
        contact_sheet.Row("second", [colour(blue)]),
    ]
    page = np.asarray(contact_sheet.lay_out(rows))
    shares = [(page == value).all(axis=2).sum() for value in (red, blue)]
    assert shares[0] == pytest.approx(3 * shares[1])
    assert shares[1] > 100 * 100
    noted = [rows[0], contact_sheet.Row("second", rows[1].images, ["a note " * 12])]
    taller = np.asarray(contact_sheet.lay_out(noted))
    assert len(taller) > len(page)
    # Nothing but paper at the margin: no text runs over.
    assert (taller[:, -contact_sheet.MARGIN :] == 255).all()


def test_before_after_shows_the_rows(tiny_model, tmp_path, monkeypatch):
    """Without the networks; the slow test below has them."""
    runs.skip_networks(monkeypatch)
    from ti_flax.quickstart import before_after
    from ti_flax.training import run as training_run

    run = settings.load_config(
        [
            f"--pretrained_model_name_or_path={tiny_model}",
            f"--output_dir={tmp_path / 'run'}",
            "--max_train_steps=1",
        ]
    )
    training_run.train_concepts(run, progress=False)
    path = before_after.write(run)
    assert path == tmp_path / "run" / "before_after.png"
    with Image.open(path) as page:
        assert page.width > 5 * 64 and page.height > 4 * 64


@pytest.mark.slow
def test_the_showcase_warns_of_nothing(tmp_path):
    """The command of the README, a minute or two on two cores."""
    command = [sys.executable, "-m", "ti_flax.quickstart", "--output_dir=out"]
    # The tests' compiler is quick, and what it makes is slow.
    env = {k: text for k, text in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = str(REPOSITORY)
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "before_after.png").is_file()
    assert not (tmp_path / "out" / "warnings.txt").exists()
