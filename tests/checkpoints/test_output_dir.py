"""Nothing that a run did not write is replaced, whatever the configuration says."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.checkpoints import orbax_folder, store, written
from ti_flax.checkpoints.folder_lock import LOCK_NAME
from ti_flax.checkpoints.output_dir import RunFolder
from ti_flax.config import run_config
from ti_flax.runtime import errors

MINE = b"a person's"


def content(*folders):
    """Every file below, links followed by name and not by content."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def finished_run(folder, **given):
    """What a run of the configuration leaves, as far as it matters here."""
    config = runs.make_config("model", "pictures", folder, **given)
    with RunFolder(config) as ours:
        ours.create()
    for name in written.FILES:
        if name != written.CONFIG_NAME:
            (folder / name).write_text("a run's")
    (folder / "concept_images").mkdir()
    for number in range(3):
        picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
        picture.save(folder / "concept_images" / f"{number}.jpeg")


def put(*names, **given):
    """Files of a person's under these names; the run's keys."""

    def make(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(MINE)
        return given

    return make


def own_model(folder):
    put("unet/config.json", "text_encoder/model.safetensors")(folder)
    return {"pretrained_model_name_or_path": str(folder)}


def own_model_by_a_link(folder):
    own_model(folder)
    (folder.parent / "linked").symlink_to(folder)
    return {"pretrained_model_name_or_path": str(folder.parent / "linked")}


def pipeline_after_a_run(folder):
    finished_run(folder)
    return put("text_encoder/model.safetensors", save_as_full_pipeline=True)(folder)


def pictures_among_those_of_a_run(folder):
    finished_run(folder)
    picture = np.zeros((20, 24, 3), np.uint8)
    Image.fromarray(picture).save(folder / "concept_images" / "1.jpeg")
    return {}


def link(name):
    def make(folder):
        finished_run(folder)
        target = folder.parent / "mine"
        if name in written.FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
            put("0.jpeg", "step_000000/0_0.png")(target)
        else:
            (folder / name).unlink()
            target.write_bytes(MINE)
        (folder / name).symlink_to(target)
        return {}

    return make


def hand_written_config(folder):
    (folder / "config.yaml").write_text("placeholder_token: <toy>  # mine\n")
    return {}


PLACES = {
    "the base model's folder": own_model,
    "the base model's folder by a link": own_model_by_a_link,
    "another model's folder": put(
        "tokenizer/vocab.json", "model_index.json", save_as_full_pipeline=True
    ),
    "a project with a README": put("README.md"),
    "somebody's concept": put("learned_embeds.bin", "token_identifier.txt"),
    "somebody's pictures": put("concept_images/0.jpeg"),
    "a model beside a run's files": pipeline_after_a_run,
    "pictures among a run's": pictures_among_those_of_a_run,
    "pictures by a link": link("concept_images"),
    "samples by a link": link("samples"),
    "numbers by a link": link("metrics.jsonl"),
    "a configuration that a person wrote": hand_written_config,
}


@pytest.mark.parametrize("resume", [None, "latest"])
@pytest.mark.parametrize("place", PLACES)
def test_what_no_run_wrote_is_not_replaced(place, resume, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    given = {"overwrite_output_dir": True, "resume_from_checkpoint": resume}
    given |= PLACES[place](folder)
    before = content(tmp_path)
    config = runs.make_config(
        *(given.pop("pretrained_model_name_or_path", "model"), "pictures", folder),
        **given,
    )
    with (
        pytest.raises(
            errors.UserError, match=r"^output_dir: .*\b(move|choose)"
        ) as told,
        RunFolder(config) as ours,
    ):
        ours.create()
    assert "\n" not in str(told.value)
    assert content(tmp_path) == before


def test_what_a_run_wrote_is_replaced_when_told_to(tmp_path):
    folder = tmp_path / "out"
    finished_run(folder, save_as_full_pipeline=True)
    put("text_encoder/model.safetensors", "notes.txt")(folder)
    keys = {"overwrite_output_dir": True, "save_as_full_pipeline": True, "seed": 3}
    with RunFolder(runs.make_config("model", "pictures", folder, **keys)) as ours:
        ours.create()
    assert "seed: 3" in (folder / "config.yaml").read_text()
    assert (folder / "notes.txt").read_bytes() == MINE


@pytest.mark.parametrize(
    ("output", "pictures"),
    [
        ("out", "out"),
        ("out", "out/pictures"),
        ("out/", "./out/../out/pictures"),
        ("out", "out/link"),
        ("link", "out/pictures"),
        ("out", "link/pictures"),
        ("out/../out", "link"),
    ],
)
def test_pictures_below_output_dir_are_refused_through_links(
    output, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("out/pictures").mkdir(parents=True)
    Path("elsewhere").mkdir()
    Path("link").symlink_to("out")
    Path("out/link").symlink_to("../elsewhere")
    with pytest.raises(ValueError, match="does not hold train_data_dir"):
        runs.make_config("model", pictures, output)
    runs.make_config("model", "elsewhere", output)


@pytest.fixture
def first(tmp_path):
    """The configuration of a run whose checkpoint of step 2 is in a shared folder."""
    config = runs.make_config(
        "model", "pictures", tmp_path / "a", checkpoint_dir=str(tmp_path / "shared")
    )
    step = tmp_path / "shared" / "2"
    (step / "state").mkdir(parents=True)
    return config


def test_a_folder_of_checkpoints_has_one_owner(first, tmp_path, monkeypatch):
    described = {"config": first.model_dump(mode="json")}
    monkeypatch.setattr(orbax_folder, "read_run", lambda *_: described)
    before = sorted((tmp_path / "shared").rglob("*"))
    for given in ({}, {"overwrite_output_dir": True}):
        changes = {"output_dir": tmp_path / "b", **given}
        with (
            pytest.raises(errors.UserError, match="the checkpoints of the run that"),
            RunFolder(first.model_copy(update=changes)) as ours,
        ):
            ours.create()
    assert sorted((tmp_path / "shared").rglob("*")) == before
    # Its own run may replace them.
    again = {"overwrite_output_dir": True, "seed": 1}
    with RunFolder(first.model_copy(update=again)) as ours:
        ours.create()
    assert orbax_folder.finished_steps(store.folder_of(first)) == []


@pytest.mark.parametrize("named", ["both", "the default of one"])
def test_two_runs_at_a_time_do_not_share_checkpoints(named, tmp_path):
    shared = tmp_path / "a" / "checkpoints"
    keys = {"checkpoint_dir": str(shared)}
    first, second = (
        runs.make_config("model", "pictures", tmp_path / name, **given)
        for name, given in (("a", keys if named == "both" else {}), ("b", keys))
    )
    with RunFolder(first) as ours:
        ours.create()
        with (
            pytest.raises(errors.UserError, match="checkpoint_dir: another run"),
            RunFolder(second) as theirs,
        ):
            theirs.create()
    assert not (shared / LOCK_NAME).exists()
    with RunFolder(second) as theirs:
        theirs.create()


def test_a_run_writes_what_is_listed(tiny_model, tmp_path, monkeypatch):
    """Else something of a person's could have the name of what is not."""
    from ti_flax.training import run as training_run

    runs.skip_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    pictures = runs.draw_pictures(tmp_path / "pictures")
    config = runs.make_config(tiny_model, pictures, tmp_path / "out", max_train_steps=2)
    training_run.train_concepts(config, progress=False)
    folders = {*written.FOLDERS, store.FOLDER_NAME, "logs"}
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found <= {*written.FILES, *folders}
    assert {"README.md", "metrics.jsonl", "report.html", "concept_images"} <= found
    again = run_config.Config(
        **{**config.model_dump(), "overwrite_output_dir": True, "seed": 1}
    )
    with RunFolder(again) as ours:
        ours.create()
