"""The quickstart: its pictures, its configuration and its sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_flax.config import run_config
from ti_flax.data.folder import read_pictures
from ti_flax.quickstart import contact_sheet, settings
from ti_flax.quickstart.critters import concept, world

REPOSITORY = Path(__file__).parents[2]
SIDE = 8


def test_pictures_are_what_the_code_draws():
    drawn = concept.draw_pictures(concept.LOOK, concept.BACKGROUNDS, concept.SEED)
    read = read_pictures(concept.FOLDER, 64, center_crop=True)
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


def test_before_after_shows_the_rows(tiny_model, tmp_path):
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
