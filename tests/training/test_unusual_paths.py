"""A run reads and writes in folders of any name."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

from ti_flax.config.run_config import Config
from ti_flax.formats import convert, find, registry
from ti_flax.models import base_model
from ti_flax.reports import metrics_log
from ti_flax.training import run as training_run

NAMES = {
    "spaces": "my  cat ",
    "brackets": "[v1] my cat",
    "backslash": "back\\slash",
    "pattern": "cat*?{a,b}[!x]",
    "percent and hash": "%s cat%20#1",
    "equals and colon": "cat=1:2",
    "unicode": "größe 猫 e\N{COMBINING ACUTE ACCENT}",
    "newline": "a\nb",
    "quotes": "'\"$HOME`<b>",
    "leading dash": "-cat",
    "tilde": "~cat",
    "long": "n" * 200,
}


@pytest.fixture(scope="module")
def expected(tiny_model, pictures, tmp_path_factory):
    """The rows of a run in folders of plain names."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "templates.txt").write_text("a photo of {}\n")
    config = runs.make_config(
        *(tiny_model, pictures, folder / "out"),
        template_file=str(folder / "templates.txt"),
        report_to="none",
    )
    with pytest.MonkeyPatch.context() as patch:
        runs.skip_networks(patch)
        return training_run.train_concepts(config, progress=False)[0].rows


def keys(model, relative):
    """All places of a run below the current folder, or below a whole path."""
    place = Path("." if relative else os.getcwd())
    return runs.keys(
        *(model, place / "pictures", place / "out" / "of it"),
        checkpoint_dir=str(place / "checkpoints"),
        template_file=str(place / "templates.txt"),
        compilation_cache_dir=str(place / "compiled"),
        logging_dir="logs [1]*",
        report_to="tensorboard",
    )


# A run takes seconds: one of the two ways for each name that may tell.
RUNS = {
    **dict.fromkeys(["brackets", "unicode", "leading dash"], True),
    **dict.fromkeys(["backslash", "pattern", "newline", "tilde", "long"], False),
}


@pytest.mark.parametrize(("name", "relative"), RUNS.items())
def test_a_run_in_folders_of_any_name(
    name, relative, tiny_model, pictures, expected, tmp_path, monkeypatch
):
    folder = tmp_path / NAMES[name]
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copytree(pictures, "pictures")
    Path("templates.txt").write_text("a photo of {}\n")
    runs.skip_networks(monkeypatch)
    given = keys(tiny_model, relative)
    for steps in (2, 6):
        given |= {"max_train_steps": steps, "resume_from_checkpoint": "latest"}
        (learned,) = training_run.train_concepts(Config(**given), progress=False)
    for rows in (learned.rows, find.load_embedding(Path("out/of it")).rows):
        jax.tree.map(np.testing.assert_array_equal, rows, expected)
    assert sorted(os.listdir("checkpoints")) == ["2", "4", "6"]
    lines = metrics_log.read_lines(Path("out/of it/metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert list(Path("out/of it/logs [1]*").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    folder = tmp_path / NAMES[name]
    folder.mkdir()
    monkeypatch.chdir(folder)
    rows = {"text_encoder": np.ones((1, 768), np.float32)}
    make = find.Embedding("<toy>", rows)
    registry.write(Path("learned_embeds.safetensors"), "diffusers", make)
    for source in (str(folder), "./learned_embeds.safetensors"):
        converted = convert.convert_embedding(
            source=source, to="kohya", output=str(folder / "out.safetensors")
        )
        learned = find.load_embedding(converted[0])
        jax.tree.map(np.testing.assert_array_equal, learned.rows, rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_a_folder_of_any_name(name, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / NAMES[name]
    shutil.copytree(tiny_model, folder)
    monkeypatch.chdir(tmp_path)
    expected = base_model.open_model(str(tiny_model))
    for path in (str(folder), f"./{NAMES[name]}", f"{folder}/"):
        model = base_model.open_model(path)
        assert model.fingerprint() == expected.fingerprint()
