"""The word at each look of a run: its file, and how the report offers it."""

import base64
import re

import numpy as np
import pytest
import runs

from ti_flax.formats import registry
from ti_flax.reports import metrics_log
from ti_flax.runtime.errors import Stopped
from ti_flax.training import run as training_run

KEYS = {
    "placeholder_token": "<my-cat>",
    "num_vectors": 2,
    "max_train_steps": 6,
    "validation_steps": 2,
    "checkpointing_steps": 3,
    "validation_prompt": "a <my-cat>",
    "num_validation_images": 1,
}
NAMES = [f"my-cat-{step:06d}.safetensors" for step in (2, 4, 6)]


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture
def train(tiny_model, pictures, tmp_path):
    def run(folder="run", **keys):
        config = runs.make_config(
            tiny_model, pictures, tmp_path / folder, **KEYS | keys
        )
        training_run.train_concepts(config, progress=False)
        return tmp_path / folder

    return run


def words(folder):
    return {path.name: path for path in sorted((folder / "words").iterdir())}


def rows(path):
    found = registry.read(path).embedding
    assert found.token == "<my-cat>"
    [only] = found.rows.values()
    return np.asarray(only)


def test_each_look_leaves_the_word_of_a_run_of_so_many_steps(train):
    found = words(train())
    assert [*found] == NAMES
    for steps, path in zip((2, 4, 6), found.values(), strict=True):
        shorter = train(f"of {steps}", max_train_steps=steps)
        expected = rows(shorter / "learned_embeds.safetensors")
        assert (rows(path) == expected).all()


@pytest.mark.parametrize(("limit", "kept"), [(0, []), (1, NAMES[2:]), (2, NAMES[1:])])
def test_the_newest_are_kept(train, limit, kept):
    folder = train(words_total_limit=limit)
    assert [path.name for path in folder.glob("words/*")] == kept


def test_a_run_that_goes_on_has_its_own_words_only(train, monkeypatch):
    with runs.stopped_after(3, monkeypatch), pytest.raises(Stopped):
        train("stopped")
    expected = {name: path.read_bytes() for name, path in words(train()).items()}
    folder = train("stopped", resume_from_checkpoint="latest")
    assert {n: path.read_bytes() for n, path in words(folder).items()} == expected
    # Of a longer run that was here before, and of somebody else.
    later, other = (folder / "words" / f"{name}-000008.safetensors" for name in "ab")
    later = later.with_name("my-cat-000008.safetensors")
    for path in (later, other):
        path.write_bytes(b"?")
    train("stopped", overwrite_output_dir=True, resume_from_checkpoint=None)
    assert [*words(folder)] == [other.name, *NAMES]


def test_the_report_offers_each_word_under_its_previews(train):
    folder = train()
    page = (folder / "report.html").read_text()
    links = re.findall(
        r'href="data:application/octet-stream;base64,([^"]*)" download="([^"]*)"', page
    )
    assert [name for _, name in links] == NAMES
    for content, name in links:
        assert base64.b64decode(content) == (folder / "words" / name).read_bytes()
    losses = {
        line["step"]: line["fixed_loss"]
        for line in metrics_log.read_lines(folder / metrics_log.VALIDATION_NAME)
    }
    least = min(losses, key=losses.get)
    columns = re.findall(r'class="column"><span>(\d+)</span>(.*?)</div>\n', page, re.S)
    marked = [int(step) for step, inside in columns if "least loss" in inside]
    assert marked == [least] and len(columns) == len(losses) == 4
