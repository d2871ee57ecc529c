"""What is wrong with a log is told, and costs no run."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import runs

from ti_flax.reports import metrics_log, trackers
from ti_flax.training import run as training_run

LINES = [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
WHOLE = [json.dumps(line).encode() + b"\n" for line in LINES]

# What stands between the first line and the second; whether it is told.
DAMAGE = {
    "a hole": b"\0" * 300 + b"\n",
    "a long hole": b"\0" * 2_500_000 + b"\n",
    "a hole before a line": b"\0" * 300,
    "half a line": b'{"step": 2, "lo\n',
    "not UTF-8": b'{"step": 2, "loss": "\xff\xfe"}\n',
    "a list": b"[1, 2]\n",
    "a number": b"7\n",
    "no step": b'{"loss": 1}\n',
    "a step that is a word": b'{"step": "1"}\n',
    "a step that is a switch": b'{"step": true}\n',
    "no JSON": b"Traceback (most recent call last):\n",
    "an empty line": b"\n",
    "deep brackets": b"[" * 100_000 + b"\n",
    "a number of many digits": b'{"step": ' + b"9" * 5_000 + b"}\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_are_left_out(damage, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    first, *others = WHOLE
    path.write_bytes(first + DAMAGE[damage] + b"".join(others))
    # A hole runs into the line after it.
    kept = [LINES[0], *LINES[2:]] if damage == "a hole before a line" else LINES
    assert list(metrics_log.read_lines(path)) == kept
    with metrics_log.open_lines(path, 2) as file:
        file.write(json.dumps({"step": 3, "loss": 1.0}) + "\n")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [*kept[:-1], {"step": 3, "loss": 1.0}]
    assert "metrics.jsonl: " in caplog.text and "left out" in caplog.text


def test_a_last_line_cut_short_is_not_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(WHOLE) + b'{"step": 4, "l')
    metrics_log.open_lines(path, 3).close()
    assert path.read_bytes() == b"".join(WHOLE)
    assert not caplog.records


def folder_instead(path):
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("mine")


def bytes_instead(path):
    path.write_bytes(b"\xff\0\xfe" * 99)


def keys_taken_out(path):
    path.write_text('{"step": 1}\n')


# What happened to a file between two runs.
HAPPENED = {
    "numbers are a folder": ("metrics.jsonl", folder_instead),
    "numbers are bytes": ("metrics.jsonl", bytes_instead),
    "numbers without keys": ("metrics.jsonl", keys_taken_out),
    "validations are a folder": ("validation.jsonl", folder_instead),
    "validations are bytes": ("validation.jsonl", bytes_instead),
    "validations without keys": ("validation.jsonl", keys_taken_out),
    "warnings are a folder": ("warnings.txt", folder_instead),
    "warnings are bytes": ("warnings.txt", bytes_instead),
    "the page is a folder": ("report.html", folder_instead),
    "the page is bytes": ("report.html", bytes_instead),
    "the configuration is bytes": ("config.yaml", bytes_instead),
    "TensorBoard's folder is a file": ("logs", bytes_instead),
}


@pytest.fixture(scope="module")
def train(tiny_model, tmp_path_factory):
    """Trains to a step without the networks; the rows."""
    pictures = runs.draw_pictures(tmp_path_factory.mktemp("pictures"))

    def to(folder, steps, **given):
        config = runs.make_config(
            tiny_model,
            pictures,
            folder,
            max_train_steps=steps,
            **{"report_to": "none", "resume_from_checkpoint": "latest"} | given,
        )
        with pytest.MonkeyPatch.context() as patch:
            runs.skip_networks(patch)
            return training_run.train_concepts(config, progress=False)[0].rows

    return to


@pytest.fixture(scope="module")
def two_steps(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    train(folder, 2)
    return folder


@pytest.fixture(scope="module")
def four_steps(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("four") / "run", 4)


@pytest.mark.parametrize("case", HAPPENED)
def test_a_run_resumes_beside_damaged_logs(
    case, train, two_steps, four_steps, tmp_path
):
    name, happen = HAPPENED[case]
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    happen(folder / name)
    report_to = "tensorboard" if name == "logs" else "none"
    rows = train(folder, 4, report_to=report_to)
    assert runs.checkpoints(folder) == [2, 4]
    jax.tree.map(np.testing.assert_array_equal, rows, four_steps)
    if happen is folder_instead:
        assert (folder / name / "mine").read_text() == "mine"


def test_event_files_of_others_stay(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "out" / "logs"
    names = ("events.out.tfevents.1.host.000000000", "events.out.tfevents.1.host")
    for folder in (shared, own):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(b"numbers")
    for folder in (shared, own):
        trackers.open_sink(
            "tensorboard", folder, {"output_dir": str(tmp_path / "out")}, 0
        ).close()
    assert {*names} <= {*os.listdir(shared)}
    assert names[0] not in os.listdir(own)
    assert names[1] in os.listdir(own)


def test_of_earlier_previews_a_person_s_files_stay(tmp_path):
    for name in ("step_000010/0_0.png", "step_000020/0_0.png", "control/0_0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"a run's")
    (tmp_path / "control" / "notes.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    metrics_log.remove_samples(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == ["control", "control/notes.txt", "mine"]
