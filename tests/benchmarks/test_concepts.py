"""The benchmark of many concepts: its pictures, its times, and what they come to."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import doors
import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.benchmarks import command
from ti_flax.benchmarks.concepts import (
    drawn,
    judged,
    measure,
    report,
    timed,
    train_queue,
)
from ti_flax.benchmarks.concepts.keys import ConceptsKeys
from ti_flax.benchmarks.quality import held_out, judge, scores
from ti_flax.benchmarks.quality.methods import DEFAULT
from ti_flax.config import concepts
from ti_flax.quickstart.critters import drawing
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.training import job


def quality_concepts(count):
    """Those of `quality --objects 24 --repeats 38`."""
    return held_out.learned(held_out.concepts(24), (DEFAULT,), 38)[:count]


def test_pictures_are_those_that_quality_trains_on(tmp_path):
    keys = ConceptsKeys(concepts=29, seed=5, output_dir=tmp_path)
    drawn.draw(keys)
    folders = [tmp_path / "pictures" / name for name in drawn.own_keys(keys)]
    assert sorted(folders) == sorted((tmp_path / "pictures").iterdir())
    for folder, concept in zip(folders, quality_concepts(29), strict=True):
        scenes = held_out.training_scenes(concept, seed=5)
        assert len(list(folder.iterdir())) == len(scenes)
        for number, scene in enumerate(scenes):
            with Image.open(folder / f"{number}.png") as picture:
                assert np.array_equal(np.asarray(picture), drawing.draw(scene))


def test_a_thousand_concepts_have_pictures_of_their_own():
    found = drawn.concepts(1000)
    assert [*found.values()] == quality_concepts(1000)
    scenes = {tuple(held_out.training_scenes(c, seed=0)) for c in found.values()}
    assert len(scenes) == len(found) == 1000
    # More of them are the same ones and others.
    assert [*drawn.concepts(40)] == [*found][:40]


def test_the_list_is_one_that_train_takes(tmp_path):
    keys = ConceptsKeys(
        concepts=30, output_dir=tmp_path / "o", max_train_steps=40, seed=2**32 - 2
    )
    drawn.write_lists(keys)
    many = concepts.load(
        [
            f"--config={tmp_path / 'o' / 'config.yaml'}",
            f"--concepts={tmp_path / 'o' / 'concepts.yaml'}",
            f"--output_dir={tmp_path / 'words'}",
        ]
    )
    assert len(many.concepts) == 30 and not many.bad
    for one, truth in zip(many.concepts, quality_concepts(30), strict=True):
        assert one.config.learnable_property == truth.learnable_property
        assert one.config.initializer_token == truth.initializer
        assert one.config.max_train_steps == 40
        assert one.config.train_batch_size == 8 and one.config.learning_rate == 3e-3
        assert one.config.validation_prompt == ()
    assert [one.config.seed for one in many.concepts[:3]] == [2**32 - 2, 2**32 - 1, 0]


ACCURACY = {"shape": 0.5, "body": 1.0, "accent": 0.0, "pattern": 0.5, "top": 0.5}


def scored(group, name, more):
    accuracy = {key: value + more for key, value in ACCURACY.items()}
    return scores.Score(group, "object", name, accuracy | {"background": 1.0})


def score_words(keys, base, words, progress):
    """In place of pictures: a word alone has less right than the same in the queue."""
    assert keys.num_images == 3 and keys.seed == 7
    assert len({word.row.tobytes() for word in words}) > 1
    return [
        scored(word.group, word.name, 0.01 * index if word.group == "queue" else -0.1)
        for index, word in enumerate(words)
    ]


class Commands:
    """In place of processes: what they would do, in this one."""

    def __init__(self):
        self.called = []

    def seconds(self, arguments, python=None):
        module, *rest = arguments
        self.called.append(module)
        if module == "ti_flax.benchmarks.concepts.train_torch":
            assert ConceptsKeys.model_validate_json(rest[0]).pytorch == "same"
            return 400.0
        if module == "ti_flax.train":
            job.train(concepts.load(rest))
            return 50.0
        assert module == train_queue.__name__
        file, *rest = rest
        train_queue.train(file, concepts.load(rest))
        return 100.0


@pytest.fixture
def commands(monkeypatch):
    runs.skip_networks(monkeypatch)
    monkeypatch.setattr(judged, "score_words", score_words)
    ran = Commands()
    monkeypatch.setattr(timed, "_seconds", ran.seconds)
    return ran


def tiny_keys(model, folder, **given):
    small = {"concepts": 3, "slots": 2, "max_train_steps": 6, "num_images": 3}
    return ConceptsKeys(
        **{"model": str(model), "output_dir": folder, "seed": 7, **small, **given}
    )


def test_benchmark_trains_judges_and_tells(tiny_model, tmp_path, commands, capsys):
    folder = tmp_path / "o"
    content = measure.measure(tiny_keys(tiny_model, folder, alone=2), progress=False)
    assert commands.called == [train_queue.__name__, *["ti_flax.train"] * 2]
    for path in ("queue/object-002", "alone/object-000", "alone/object-001"):
        assert (folder / path / "learned_embeds.safetensors").is_file()
    assert json.loads((folder / "report.json").read_text()) == content
    queue, alone, spent = content["queue"], content["alone"], read(folder, "spent")
    assert queue["words"] == 3 and queue["steps"]["quartiles"] == [6, 6, 6]
    assert queue["in_slots"] == spent["seconds"]
    assert queue["share_in_steps"] == spent["in_steps"] / spent["seconds"]
    assert alone["seconds"] == {"object-000": 50.0, "object-001": 50.0}
    assert alone["steps"]["mean"] == 6
    assert content["ratio"] == pytest.approx(3 * 50 / 100)
    objects = content["accuracy"]["object"]
    assert objects["words"] == {"queue": 3, "alone": 2}
    assert objects["body"]["queue"]["mean"] == pytest.approx(1.01)
    # Of the first two words of the queue, beside the same words.
    assert objects["body"]["difference"]["mean"] == pytest.approx(0.105)
    told = capsys.readouterr().out
    assert "| words an hour, start to exit | 108 | 72.0 | 1.50 times |" in told
    assert "| steps, mean [quartiles] | 6 [6, 6, 6] | 6 [6, 6, 6] |  |" in told
    assert "| objects (3; 2), appearance, % right | 51.0 [" in told


def test_runs_of_pytorch_stand_beside_the_queue(tiny_model, tmp_path, commands, capsys):
    keys = {"judge": False, "pytorch": "same", "concepts": 2}
    with pytest.raises(UserError, match="pytorch: expected alone"):
        measure.measure(tiny_keys(tiny_model, tmp_path, **keys), progress=False)
    for _ in range(2):  # the second time nothing is run
        keys["alone"] = 2
        content = measure.measure(tiny_keys(tiny_model, tmp_path, **keys), False)
        assert len(commands.called) == 5
        assert content["pytorch"]["seconds"] == [400.0, 400.0]
        assert content["ratio_to_pytorch"] == pytest.approx(2 * 400 / 100)
        told = capsys.readouterr().out
        assert "| 2 runs of PyTorch | beside them |" in told
        assert "| 1.00 times | 9.00 | 8.00 times |" in told
        assert "| seconds, start to exit | 100 | 50.0 each |  | 400 each |" in told


def test_a_run_of_pytorch_takes_all_steps(tiny_model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    from ti_flax.benchmarks import step_torch
    from ti_flax.benchmarks.concepts import train_torch

    taken, make_step = [], step_torch.make_step

    def count(*arguments, **keys):
        step = make_step(*arguments, **keys)
        [row] = step.learned.values()

        def take():
            loss = step()
            taken.append(row[-1].tolist())
            return loss

        return take

    monkeypatch.setattr(step_torch, "make_step", count)
    for pytorch in ("same", "script"):
        taken.clear()
        keys = tiny_keys(tiny_model, tmp_path, pytorch=pytorch)
        monkeypatch.setattr("sys.argv", ["train_torch", keys.model_dump_json()])
        train_torch.main()
        assert len({*map(tuple, taken)}) == len(taken) == 6
        assert "PyTorch" in capsys.readouterr().out


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_a_second_start_trains_what_is_missing_and_no_more(
    tiny_model, tmp_path, commands, monkeypatch
):
    def measured(**given):
        keys = tiny_keys(tiny_model, tmp_path, judge=False, **given)
        return measure.measure(keys, progress=False)

    first = measured()
    assert first["alone"] is first["ratio"] is first["accuracy"] is None
    assert measured()["queue"] == first["queue"]
    assert commands.called == [train_queue.__name__]
    done = read(tmp_path, "queue/concepts")["concepts"]
    more = measured(concepts=4, alone=1)
    ledger = read(tmp_path, "queue/concepts")["concepts"]
    assert {name: ledger[name] for name in done} == done and len(ledger) == 4
    # What was done in parts has no time.
    queue = more["queue"]
    assert queue["words"] == 4 and queue["steps"]["mean"] == 6
    assert queue["seconds"] is queue["share_in_steps"] is more["ratio"] is None
    assert more["alone"]["mean_seconds"] == 50
    assert "not measured" in report.table(more)
    with pytest.raises(UserError, match="another learning_rate; choose another"):
        measured(learning_rate=1e-3)
    assert len(commands.called) == 3
    # As when it was killed before its times were written.
    times = read(tmp_path, "times")
    (tmp_path / "times.json").write_text(json.dumps(times | {"alone": {}}))
    again = measured(concepts=4, alone=1)
    assert again["alone"]["measured"] == 0
    assert again["alone"]["seconds"] == {"object-000": None}
    assert again["alone"]["words_per_hour"] is again["ratio"] is None


def test_rates_and_shares_follow_from_the_times():
    spent = {"seconds": 1800.0, "in_steps": 1620.0, "steps": 2400}
    queue = report.of_queue(
        {"concepts": 60, "seconds": 2000.0, "spent": spent}, [100, 200, 300, 600]
    )
    assert queue["words_per_hour"] == pytest.approx(60 * 3600 / 2000)
    assert queue["words_per_hour_in_slots"] == pytest.approx(120)
    assert queue["share_in_steps"] == pytest.approx(0.9)
    assert queue["seconds_per_refill"] == pytest.approx(3)
    assert queue["steps"] == {"mean": 300, "quartiles": [175, 250, 375]}
    alone = report.of_alone({"a": 90.0, "b": None, "c": 110.0}, [600, 600, 600])
    assert alone["words"] == 3 and alone["measured"] == 2
    assert alone["words_per_hour"] == pytest.approx(36)
    assert report.ratio(queue, alone) == pytest.approx(3)
    assert report.ratio(queue, None) is None


def test_intervals_are_over_words_and_differences_over_pairs():
    words = [scored("queue", "a", 0.2), scored("queue", "b", 0.0)]
    words += [scored("queue", "c", 0.1), scored("alone", "a", 0.1)]
    words += [scored("alone", "b", -0.1)]
    appearance = judged.accuracy(words, seed=0)["object"]["appearance"]
    assert appearance["queue"] == pytest.approx({"mean": 0.6, "low": 0.5, "high": 0.7})
    assert appearance["alone"] == pytest.approx({"mean": 0.5, "low": 0.4, "high": 0.6})
    # Each word of a pair has the same more: no interval.
    assert appearance["difference"] == pytest.approx(
        {"mean": 0.1, "low": 0.1, "high": 0.1}
    )
    assert {*judge.LOOK_ATTRIBUTES} < {*judged.accuracy(words, seed=0)["object"]}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--concepts=1001", "concepts: expected less than or equal to 1000"),
        ("--alone=65", "alone: expected at most concepts, which is 64, found 65"),
        ("--slots=0", "slots: expected greater than or equal to 1"),
        ("--lr_scheduler=cosin", "lr_scheduler: expected 'constant'"),
        ("--stop=plateau --max_train_steps=9", "expected plateau_patience <= max"),
    ],
)
def test_a_mistake_is_told_in_a_line_before_any_work(given, told, tmp_path):
    argv = [*given.split(), f"--output_dir={tmp_path / 'o'}"]
    with pytest.raises(UserError) as caught:
        (_, keys), _ = command.read(["concepts", *argv])
        measure.measure(keys)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_help_comes_without_jax():
    [shown] = doors.run([["benchmark", "concepts", "--help"]])
    assert shown.code == 0 and not shown.asked, shown.stderr
    assert "usage: python -m ti_flax.benchmark concepts [--key value" in shown.stdout


SLEEPER = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_a_command_is_timed_and_hears_signals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("napper.py").write_text("import time; time.sleep(0.3)")
    assert 0.3 <= timed._seconds(["napper"]) < 20
    with pytest.raises(UserError, match="no_such_module ended with code 1"):
        timed._seconds(["no_such_module"])
    Path("sleeper.py").write_text(SLEEPER)

    def stop():
        while not Path("ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with pytest.raises(Stopped, match="the same command goes on"):
        timed._seconds(["sleeper"])
    assert signal.getsignal(signal.SIGTERM) == before
