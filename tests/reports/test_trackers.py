"""What Weights & Biases is given; TensorBoard's part is read back elsewhere."""

import importlib.machinery
import sys
import types

import pytest
from reported import PICTURES, USAGE, add_steps, validation_of

from ti_flax.config import run_config
from ti_flax.reports import report, trackers
from ti_flax.runtime import errors


class FakeWandb(types.ModuleType):
    """What a run of Weights & Biases is given; nothing is known of its server."""

    Error = RuntimeError

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.begun, self.finished = [], [], 0
        self.open, self.by_run = set(), {}

    def init(self, **settings):
        self.begun.append(settings)
        id_ = settings["id"] or f"run-{len(self.begun)}"
        if settings["reinit"] != "create_new":  # ends the runs before
            self.open.clear()
        self.open.add(id_)

        def log(values, step):
            assert id_ in self.open
            self.logged.append((step, values))
            self.by_run.setdefault(id_, []).append((step, values))

        return types.SimpleNamespace(id=id_, log=log, finish=self.finish)

    def finish(self):
        self.finished += 1

    def Image(self, pixels):
        return pixels.shape


def test_wandb_gets_the_same_and_goes_on_with_its_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = run_config.Config(
        pretrained_model_name_or_path="some/model",
        train_data_dir=tmp_path / "pictures",
        output_dir=tmp_path / "out",
        placeholder_token="<toy>",
        learning_rate=0.3,
        report_to="wandb",
    )
    config.output_dir.mkdir()
    with report.open_report(
        config, 0, range(0, 4), False, PICTURES, [], USAGE
    ) as run_report:
        add_steps(run_report, 1, 2)
        run_report.add_validation(validation_of(2))
    with report.open_report(
        config, 0, range(2, 4), False, PICTURES, [], USAGE
    ) as run_report:
        add_steps(run_report, 3, 1)
    assert fake.finished == 2
    assert [begun["id"] for begun in fake.begun] == [None, "run-1"]
    assert fake.begun[0]["config"]["learning_rate"] == 0.3
    losses = [(at, v["train/loss"]) for at, v in fake.logged if "train/loss" in v]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert (2, {"previews/0_a_toy_on_a_table": (8, 8, 3)}) in fake.logged


def test_wandb_that_does_not_start_is_told_in_one_line(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("no\nAPI key"))
    with pytest.raises(errors.UserError, match=r"no API key.*WANDB_MODE=offline"):
        trackers.open_sink("wandb", tmp_path, {"output_dir": str(tmp_path)}, 0)


@pytest.mark.parametrize("name", [None, "mine"])
def test_each_word_has_a_wandb_run_of_its_own(name, tmp_path, monkeypatch):
    """Of those in training at once; each goes on with its own."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for variable in ("WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    if name:
        monkeypatch.setenv("WANDB_NAME", name)
        monkeypatch.setenv("WANDB_PROJECT", "project")

    def opened(word, start=0):
        folder = tmp_path / word
        config = {"output_dir": str(folder), "placeholder_token": f"<{word}>"}
        return trackers.open_sink("wandb", folder / "logs", config, start)

    cat, dog = opened("cat"), opened("dog")
    cat.scalars(1, {"loss": 2.0})
    dog.scalars(1, {"loss": 3.0})
    again = opened("cat", start=1)
    again.scalars(2, {"loss": 1.0})
    dog.scalars(2, {"loss": 2.5})
    told = {begun["project"] for begun in fake.begun}
    assert told == {"project" if name else "textual_inversion"}
    assert [begun["name"] for begun in fake.begun] == (
        [name] * 3 if name else ["cat", "dog", "cat"]
    )
    assert fake.by_run == {
        "run-1": [(1, {"loss": 2.0}), (2, {"loss": 1.0})],
        "run-2": [(1, {"loss": 3.0}), (2, {"loss": 2.5})],
    }


@pytest.mark.parametrize(
    ("report_to", "installed", "expected"),
    [
        ("all", True, ("tensorboard", "wandb")),
        ("all", False, ("tensorboard",)),
        ("wandb", False, ("wandb",)),
        ("tensorboard", True, ("tensorboard",)),
        ("none", True, ()),
    ],
)
def test_all_is_what_is_installed(monkeypatch, report_to, installed, expected):
    fake = FakeWandb()
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake if installed else None)
    assert trackers.names(report_to) == expected
    if "wandb" in expected and not installed:
        with pytest.raises(errors.UserError, match="wandb is not installed"):
            trackers.check(report_to)
    else:
        trackers.check(report_to)


def test_each_of_several_trackers_is_told(tmp_path, monkeypatch):
    fake = FakeWandb()
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = tmp_path / "logs"
    sink = trackers.open_sink("all", folder, {"output_dir": str(tmp_path)}, 0)
    sink.scalars(1, {"a": 2.0})
    sink.text(1, "nearest", "words")
    sink.close()
    assert fake.logged == [(1, {"a": 2.0}), (1, {"nearest": "words"})]
    assert fake.finished == 1
    [events] = folder.glob("events.out.tfevents.*")
    assert b"nearest" in events.read_bytes()


def test_nothing_is_written_for_no_tracker(tmp_path):
    sink = trackers.open_sink("none", tmp_path / "logs", {}, 0)
    sink.scalars(1, {"a": 2.0})
    sink.close()
    assert not (tmp_path / "logs").exists()
