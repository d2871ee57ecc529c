"""A run that ends where its word has learned, and the rows that it keeps."""

import json
import re
import signal

import numpy as np
import pytest
import runs

from ti_flax.config import run_config
from ti_flax.formats import find
from ti_flax.runtime import errors
from ti_flax.training import run as training_run

# Fires where the loss of these fakes settles: long before the end.
STOP = {
    "stop": "dvar",
    "dvar_window": 8,
    "dvar_eps": 0.3,
    "fixed_loss_steps": 2,
    "max_train_steps": 400,
    "checkpointing_steps": 7,
    "validation_steps": 50,
    "learning_rate": 0.05,
}


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture
def settings(tiny_model, pictures, tmp_path):
    def make(folder="run", **keys):
        keys = STOP | keys
        return runs.make_config(tiny_model, pictures, tmp_path / folder, **keys)

    return make


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def evaluated(folder):
    """The fixed losses between validations, by step."""
    return {
        line["step"]: line["fixed_loss"]
        for line in lines(folder)
        if "fixed_loss" in line
    }


PLATEAU = {"stop": "plateau", "plateau_patience": 8, "plateau_min_delta": 0.05}


@pytest.mark.parametrize("rule", [{}, PLATEAU], ids=["dvar", "plateau"])
def test_a_run_ends_where_its_word_has_learned(settings, caplog, rule):
    config = settings(**rule)
    with caplog.at_level("INFO", "ti_flax"):
        (word,) = training_run.train_concepts(config, progress=False)
    steps = [line["step"] for line in lines(config.output_dir)]
    stop = len(steps)
    assert steps == [*range(1, stop + 1)] and 8 <= stop < 100 and stop % 2 == 0
    assert f"stopped after {stop} of 400 steps: the fixed loss has settled" in (
        caplog.text
    )
    # Its last step has everything that the last step of a run has.
    assert runs.checkpoints(config.output_dir)[-1] == stop
    validations = lines(config.output_dir, "validation.jsonl")
    assert [line["step"] for line in validations] == [
        0,
        *range(50, stop, 50),
        stop,
    ]
    losses = evaluated(config.output_dir)
    assert [*losses] == [*range(2, stop + 1, 2)]
    np.testing.assert_allclose(validations[-1]["fixed_loss"], losses[stop], rtol=1e-5)
    page = (config.output_dir / "report.html").read_text()
    assert f"stopped: {stop} of 400 steps" in page
    assert "the fixed loss has settled" in page
    saved = find.load_embedding(str(config.output_dir))
    np.testing.assert_array_equal(saved.rows["text_encoder"], word.rows["text_encoder"])
    assert saved.provenance["steps"] == str(stop)
    # As a run of as many steps, but for the loss between them.
    other = settings("other", stop="none", max_train_steps=stop)
    (plain,) = training_run.train_concepts(other, progress=False)
    np.testing.assert_allclose(
        word.rows["text_encoder"], plain.rows["text_encoder"], atol=1e-5
    )


def test_a_run_that_has_stopped_is_finished(settings):
    (word,) = training_run.train_concepts(settings(), progress=False)
    before = runs.content(settings().output_dir)
    config = settings(resume_from_checkpoint="latest", max_train_steps=4000)
    (again,) = training_run.train_concepts(config, progress=False)
    np.testing.assert_array_equal(again.rows["text_encoder"], word.rows["text_encoder"])
    after = runs.content(settings().output_dir)
    assert before["metrics.jsonl"] == after["metrics.jsonl"]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_stopped_run_resumes_and_ends_at_the_same_step(settings, monkeypatch, keep):
    whole = settings("whole", keep=keep)
    training_run.train_concepts(whole, progress=False)
    with (
        runs.stopped_after(7, monkeypatch, signal.SIGTERM),
        pytest.raises(errors.Stopped, match="7 of 400 steps"),
    ):
        training_run.train_concepts(settings(keep=keep), progress=False)
    config = settings(keep=keep, resume_from_checkpoint="latest")
    training_run.train_concepts(config, progress=False)
    found, expected = runs.content(config.output_dir), runs.content(whole.output_dir)
    # Each process warns once of rows that are long.
    del found["warnings.txt"], expected["warnings.txt"]
    assert found == expected
    assert (
        runs.checkpoints(config.output_dir)[-1]
        == (runs.checkpoints(whole.output_dir)[-1])
    )


def test_the_rows_of_the_least_fixed_loss_are_kept(settings, caplog):
    # At this rate the rows swing around the least loss.
    keys = {"stop": "none", "keep": "best", "learning_rate": 0.5}
    config = settings(**keys, max_train_steps=24, checkpointing_steps=100)
    with caplog.at_level("INFO", "ti_flax"):
        (word,) = training_run.train_concepts(config, progress=False)
    losses = evaluated(config.output_dir)
    best = min(losses, key=losses.get)
    assert best < 24
    assert f"kept the vectors of step {best}, with the least fixed loss" in caplog.text
    saved = find.load_embedding(str(config.output_dir))
    assert saved.provenance["steps"] == str(best)
    other = settings("other", **keys, max_train_steps=best)
    (there,) = training_run.train_concepts(other, progress=False)
    for kept in (word, saved):
        np.testing.assert_array_equal(
            kept.rows["text_encoder"], there.rows["text_encoder"]
        )


def test_before_an_evaluation_the_last_rows_are_the_best(settings):
    keys = {"stop": "none", "max_train_steps": 3, "fixed_loss_steps": 5}
    found = [
        training_run.train_concepts(settings(keep, keep=keep, **keys), False)[0]
        for keep in ("last", "best")
    ]
    np.testing.assert_array_equal(*(word.rows["text_encoder"] for word in found))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"dvar_window": 300, "max_train_steps": 200},
            "expected dvar_window <= max_train_steps, found 300 > 200",
        ),
        (
            {"dvar_window": 9, "fixed_loss_steps": 5},
            "expected dvar_window >= 2 * fixed_loss_steps, found 9 and 5",
        ),
        ({"dvar_eps": 0}, "dvar_eps: expected greater than 0, found "),
        ({"stop": "clip"}, "stop: expected 'none', 'plateau' or 'dvar', found 'clip'"),
        (
            {"stop": "plateau", "plateau_patience": 500},
            "expected plateau_patience <= max_train_steps, found 500 > 400",
        ),
    ],
)
def test_what_could_never_stop_is_refused(keys, told):
    argv = runs.to_argv(
        {key: str(value) for key, value in (STOP | keys).items()}
        | {
            "pretrained_model_name_or_path": "a/b",
            "train_data_dir": "x",
            "placeholder_token": "<y>",
            "initializer_token": "z",
        }
    )
    with pytest.raises(errors.UserError, match=re.escape(told)) as caught:
        run_config.load_config(argv)
    assert "\n" not in str(caught.value)


def test_another_stop_is_another_run(settings):
    training_run.train_concepts(settings(max_train_steps=8), progress=False)
    config = settings(stop="none", resume_from_checkpoint="latest")
    with pytest.raises(errors.UserError, match="stop was dvar, is none"):
        training_run.train_concepts(config, progress=False)
