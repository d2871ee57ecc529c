"""Callbacks of a run, and the run that is returned."""

import copy
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from PIL import Image

from ti_flax.reports.callbacks import Step, Validation
from ti_flax.step import train_step
from ti_flax.training import run as training_run

STEPS = 6


@pytest.fixture
def train(small_model, tmp_path, monkeypatch):
    """Runs the trainer without the networks."""
    pictures = runs.draw_pictures(tmp_path / "pictures")
    runs.skip_networks(monkeypatch)

    def run(folder, keys=(), **callbacks):
        given = {"validation_steps": 3, "checkpointing_steps": 99, **dict(keys)}
        config = runs.make_config(small_model, pictures, tmp_path / folder, **given)
        (learned,) = training_run.train_concepts(config, False, **callbacks)
        return learned

    run.folder = tmp_path
    return run


def spoil(told):
    """Changes whatever can be changed in what a callback gets."""
    for value in told:
        if isinstance(value, list | tuple):
            spoil(value)
        if isinstance(value, list):
            value.clear()
        elif isinstance(value, np.ndarray):
            value[...] = 0


@pytest.fixture(
    scope="module", params=["fakes", pytest.param("networks", marks=pytest.mark.slow)]
)
def pair(request, small_model, pictures, tmp_path_factory):
    """Two runs with previews, and what callbacks of the second heard."""
    folder = tmp_path_factory.mktemp("pair")
    heard = []

    def hear(told):
        heard.append(copy.deepcopy(told))
        spoil(told)
        np.random.seed(0)
        jax.random.normal(jax.random.key(0))

    def run(name, **callbacks):
        config = runs.make_config(
            *(small_model, pictures, folder / name),
            validation_prompt="a <toy>",
            num_validation_images=1,
            validation_control=True,
            validation_steps=2,
            max_train_steps=3,
        )
        (learned,) = training_run.train_concepts(config, False, **callbacks)
        return learned

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "fakes":
            runs.skip_networks(patch)
        return run("quiet"), run("loud", on_step=hear, on_look=hear), heard


def test_callbacks_change_no_number(pair):
    quiet, loud, _ = pair
    for name, rows in quiet.rows.items():
        assert rows.tobytes() == loud.rows[name].tobytes()
    ours, theirs = (runs.content(run.folder) for run in (loud, quiet))
    assert ours == theirs
    assert {"metrics.jsonl", "validation.jsonl", "samples/control/0_0.png"} <= {*ours}


def test_callbacks_hear_what_the_files_say_in_its_order(pair):
    _, run, heard = pair
    # Steps in their order; a look after those that it looks at.
    kinds = [Validation, Step, Step, Validation, Step, Validation]
    assert [*map(type, heard)] == kinds
    assert [told.step for told in heard] == [0, 1, 2, 2, 3, 3]
    for kind, name in ((Step, "metrics"), (Validation, "validation")):
        lines = (run.folder / f"{name}.jsonl").read_text().splitlines()
        told = [each for each in heard if isinstance(each, kind)]
        for each, line in zip(told, map(json.loads, lines), strict=True):
            assert as_line(each) == line


def as_line(told):
    """As it stands in the file."""
    line = told._asdict()
    if isinstance(told, Validation):
        for key in ("previews", "control"):
            line[key] = [{"prompt": p, "files": files} for p, files, _ in line[key]]
    elif math.isnan(line["fixed_loss"]):
        del line["fixed_loss"]
    return json.loads(json.dumps(line))  # tuples are lists there


def test_looks_have_pictures(pair):
    _, run, heard = pair
    for look in (told for told in heard if isinstance(told, Validation)):
        (shown,) = look.previews
        (file,), (picture,) = shown.files, shown.pictures
        np.testing.assert_array_equal(Image.open(run.folder / file), picture)
        assert len(look.control) == (look.step == 0)


def test_a_run_has_its_metrics_as_columns(train):
    steps, looks = [], []
    run = train("run", {"num_vectors": 2}, on_step=steps.append, on_look=looks.append)
    assert (run.token, run.step, run.folder) == ("<toy>", STEPS, train.folder / "run")
    assert run.rows is run.word.rows and run.rows["text_encoder"].shape == (2, 32)
    metrics = run.metrics
    # pandas takes columns of one length and one axis, whatever their types.
    assert {column.shape for column in metrics.values()} == {(STEPS,)}
    np.testing.assert_array_equal(metrics["step"], np.arange(1, STEPS + 1))
    np.testing.assert_array_equal(metrics["loss"], [step.loss for step in steps])
    norms = [step.row_norm[1] for step in steps]
    np.testing.assert_array_equal(metrics["row_norm/1"], norms)
    kinds = {name: column.dtype.kind for name, column in metrics.items()}
    assert (kinds["step"], kinds["skipped"], kinds["loss"]) == ("i", "b", "f")
    assert {kind for name, kind in kinds.items() if name[:4] == "row_"} == {"f"}
    assert {c.shape for c in run.validations.values()} == {(3,)}
    quarters = [look.loss_by_quarter[3] for look in looks]
    np.testing.assert_array_equal(run.validations["loss_by_quarter/3"], quarters)
    assert "nearest/0" not in run.validations


def test_what_a_line_lacks_is_nan(train, monkeypatch):
    sound = train_step.draw_batch

    def draw_batch(bank, number, *rest):
        batch = sound(bank, number, *rest)
        poison = jnp.where(number == 1, jnp.nan, 0.0)[:, None, None, None, None]
        return batch._replace(noise=batch.noise + poison)

    monkeypatch.setattr(train_step, "draw_batch", draw_batch)
    steps = []
    keys = {"stop": "plateau", "fixed_loss_steps": 2, "plateau_patience": 6}
    metrics = train("run", keys, on_step=steps.append).metrics
    np.testing.assert_array_equal(metrics["skipped"], [False, True] + 4 * [False])
    assert np.flatnonzero(np.isnan(metrics["loss"])).tolist() == [1]
    assert np.flatnonzero(np.isnan(metrics["fixed_loss"])).tolist() == [0, 2, 4]
    assert [math.isnan(step.fixed_loss) for step in steps] == 3 * [True, False]


class Enough(OSError):
    """What a callback raises; of a kind that a run tells otherwise of its own files."""


def stop_at(number):
    def stop(told):
        calls.append(told.step)
        if told.step == number:
            raise Enough("enough")

    calls = []
    return stop, calls


@pytest.mark.parametrize(
    ("name", "number", "heard"),
    [
        ("on_step", 2, [1, 2]),
        ("on_look", 3, [0, 3]),
        ("on_look", 0, [0]),
        ("on_step", STEPS, [*range(1, STEPS + 1)]),
    ],
)
def test_a_run_whose_callback_fails_is_saved_and_resumes(train, name, number, heard):
    stop, calls = stop_at(number)
    with pytest.raises(Enough) as raised:
        train("run", **{name: stop})
    # None is called after the one that failed.
    assert calls == heard
    first, second = raised.value.__notes__
    assert first == f"raised by {name} of step {number}"
    folder = train.folder / "run"
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert number <= done and second.startswith(
        f"{done} of {STEPS} steps are saved in "
    )
    assert [path.name for path in folder.glob("checkpoints/*")] == [str(done)][:done]
    whole = train("whole")
    steps = []
    again = {"resume_from_checkpoint": "latest"}
    resumed = train("run", again, on_step=steps.append)
    assert [step.step for step in steps] == [*range(done + 1, STEPS + 1)]
    for encoder, rows in whole.rows.items():
        np.testing.assert_array_equal(resumed.rows[encoder], rows)
    # Also what it did not take itself.
    np.testing.assert_array_equal(resumed.metrics["loss"], whole.metrics["loss"])


def test_what_is_no_exception_ends_a_run_as_ever(train):
    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("run", on_step=interrupt)
    assert not [*(train.folder / "run").glob("checkpoints/[0-9]*")]
