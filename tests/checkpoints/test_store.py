"""What a checkpoint holds, what it refuses, and what a failing disk leaves."""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs

import ti_flax
from ti_flax.checkpoints import identity, orbax_folder, store
from ti_flax.checkpoints.folder_lock import LOCK_NAME
from ti_flax.checkpoints.output_dir import RunFolder
from ti_flax.checkpoints.written import CONFIG_NAME
from ti_flax.config.fields import LrScheduler
from ti_flax.config.run_config import Config
from ti_flax.formats import find
from ti_flax.models import base_model
from ti_flax.publishing import concept_folder
from ti_flax.runtime import atomic, errors
from ti_flax.step.optimizer import adamw, learning_rate_schedule, schedule_has_end
from ti_flax.step.state import init_state
from ti_flax.training import run as training_run

RUN = {"config": {}, "fingerprints": {}, "versions": {}}


def make_state(vectors=1, width=768, seed=0):
    """A state with every number its own."""
    random = np.random.default_rng(seed)
    optimizer = adamw(0.9, 0.999, 1e-8, 0.0, None)
    rows = {"text_encoder": jnp.zeros((1, vectors, width))}
    return jax.tree.map(
        lambda leaf: np.asarray(random.normal(size=leaf.shape) * 9, leaf.dtype),
        init_state(rows, optimizer),
    )


def zeros(state):
    return jax.tree.map(np.zeros_like, state)


@pytest.fixture
def folder(tmp_path):
    return orbax_folder.epath.Path(tmp_path / "checkpoints")


def bytes_on_disk(folder):
    return sum(path.stat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


class EarlierState(NamedTuple):
    """What checkpoints held before stopping: no `progress`, not even an empty one."""

    step: Any
    skipped: Any
    rows: Any
    opt_state: Any


def test_a_checkpoint_from_before_stopping_is_read(folder):
    state = make_state()
    assert state.progress is None
    folder.mkdir()
    with orbax_folder.opened(folder) as manager:
        item = ocp.args.StandardSave(EarlierState(*state[:4]))
        manager.save(7, args=ocp.args.Composite(state=item, run=ocp.args.JsonSave(RUN)))
        manager.wait_until_finished()
    found = identity.FoundCheckpoint(folder, 7, RUN)
    step, restored = store.restore(found, zeros(state))
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_concept_of_sd15_takes_less_than_100_kilobytes(folder, tmp_path):
    state = make_state(vectors=1, width=768)
    config = runs.make_config("model", "pictures", tmp_path / "run")
    run = identity.describe(config, {"train_data_dir": "0" * 64})
    with store.Checkpoints(folder, None, run) as checkpoints:
        checkpoints.save(500, state)
    held = Path(folder) / "500"
    assert sum(p.stat().st_size for p in held.rglob("*") if p.is_file()) < 20_000
    assert bytes_on_disk(held) < 100_000


def test_what_was_saved_is_restored_to_the_bit(folder):
    state = make_state()
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        checkpoints.save(7, state)
    found = identity.FoundCheckpoint(folder, 7, RUN)
    number, restored = store.restore(found, zeros(state))
    assert number == 7
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    first = store.restore(None, state)
    assert first[0] == 0
    jax.tree.map(np.testing.assert_array_equal, first[1], state)


def test_the_newest_are_kept(folder):
    with store.Checkpoints(folder, 2, RUN) as checkpoints:
        for number in (2, 4, 6, 6):
            checkpoints.save(number, make_state(seed=number))
    assert orbax_folder.finished_steps(folder) == [4, 6]


def test_a_state_given_up_while_it_is_written_does_no_harm(folder):
    state = make_state()
    kept = jax.tree.map(np.copy, state)
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        checkpoints.save(1, state)
        for leaf in jax.tree.leaves(state):
            leaf.fill(0)
    _, restored = store.restore(identity.FoundCheckpoint(folder, 1, RUN), zeros(state))
    jax.tree.map(np.testing.assert_array_equal, restored, kept)


def test_a_checkpoint_says_what_made_it(tmp_path):
    config = runs.make_config("model", "pictures", tmp_path / "run")
    run = json.loads(json.dumps(identity.describe(config, {"train_data_dir": "ab"})))
    assert run["config"]["learning_rate"] == config.learning_rate
    assert run["fingerprints"] == {"train_data_dir": "ab"}
    assert run["config_fingerprint"] == identity.config_fingerprint(config)
    assert run["versions"]["ti_flax"] == ti_flax.__version__
    assert run["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"learning_rate": 1e-3}, False),
        ({"seed": 1}, False),
        ({"num_vectors": 2}, False),
        ({"train_batch_size": 4}, False),
        ({"random_flip": False}, False),
        ({"mixed_precision": "bf16"}, False),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 2}, True),
        ({"max_train_steps": 9, "checkpointing_steps": 1}, True),
        ({"checkpoint_dir": "elsewhere", "overwrite_output_dir": True}, True),
        ({"train_data_dir": "moved", "output_dir": "moved/too"}, True),
    ],
    ids=str,
)
def test_a_run_goes_on_with_other_places_but_not_other_numbers(tmp_path, given, same):
    arguments = ("model", "pictures", tmp_path / "run")
    first = identity.config_fingerprint(runs.make_config(*arguments))
    if "output_dir" in given:
        given = {**given, "output_dir": tmp_path / "other"}
    second = runs.keys(*arguments) | given
    fingerprint = identity.config_fingerprint(Config(**second))
    assert (first == fingerprint) == same


def test_the_model_is_known_by_its_bytes_alone(tiny_model, tmp_path):
    first = base_model.open_model(str(tiny_model)).fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert base_model.open_model(str(copy)).fingerprint() == first
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        file = copy / name
        held = file.read_bytes()
        # The last number of the last tensor; white space at the end of JSON.
        file.write_bytes(held[:-1] + bytes([held[-1] ^ 1 if "unet" in name else 32]))
        assert base_model.open_model(str(copy)).fingerprint() != first
        file.write_bytes(held)


@pytest.mark.parametrize("damage", ["no data", "no metadata", "no description"])
def test_a_damaged_checkpoint_is_named(folder, damage):
    state = make_state()
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        checkpoints.save(3, state)
    place = Path(folder) / "3"
    if damage == "no data":
        shutil.rmtree(place / "state" / "ocdbt.process_0")
        shutil.rmtree(place / "state" / "d")
    elif damage == "no metadata":
        (place / "state" / "_METADATA").unlink()
    else:
        (place / "run" / "metadata").write_bytes(b"{")
    with pytest.raises(
        errors.UserError, match=r"3 cannot be read .* start anew"
    ) as told:
        orbax_folder.read_run(folder, 3)
        store.restore(identity.FoundCheckpoint(folder, 3, RUN), zeros(state))
    assert "\n" not in str(told.value)
    # What cannot be read today may be whole.
    assert "delete" not in str(told.value)


def test_the_checkpoint_before_an_unreadable_one_is_named(folder):
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        for number in (2, 4, 6):
            checkpoints.save(number, make_state())
    (Path(folder) / "6" / "run" / "metadata").write_bytes(b"{")
    with pytest.raises(errors.UserError, match=r"move it .*: latest is then 4"):
        orbax_folder.read_run(folder, 6)


# Names of folders, each with a neighbour that it matches as a pattern.
NAMES = {
    "space": ("my cat", "my"),
    "brackets": ("[v1] my cat", "v my cat"),
    "open bracket": ("cat[", "cat"),
    "backslash": ("back\\slash", "back"),
    "star": ("cat*", "cat and dog"),
    "question mark": ("cat?", "cats"),
    "braces": ("{cat,dog}", "cat"),
    "percent": ("cat%20dog", "cat dog"),
    "hash": ("cat#1", "cat"),
    "colon": ("v1:cat", "v1"),
    "leading dash": ("-cat", "cat"),
    "tilde": ("~", "tilde"),
    "unicode": ("größe 猫 \N{COMBINING ACUTE ACCENT}", "größe"),
    "newline": ("a\nb", "a"),
    "quotes": ("'\"$HOME`", "quotes"),
    "long": ("n" * 200, "n"),
    "many folders": ("/".join(["deep"] * 40), "shallow"),
    "number": ("500", "5"),
    "dots": ("..cat.", "cat"),
}


WAYS = [
    *((name, "absolute") for name in NAMES),
    *itertools.product(
        ["space", "brackets", "backslash", "tilde"],
        ["relative", "trailing slash", "link"],
    ),
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_folder_of_any_name_holds_checkpoints(name, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, neighbour = NAMES[name]
    given = {"relative": f"./{name}", "trailing slash": f"{tmp_path / name}/"}
    given = given.get(way, str(tmp_path / name))
    if way == "link":
        (tmp_path / "target").mkdir()
        (tmp_path / name).symlink_to(tmp_path / "target")
    for seed, place in enumerate((str(tmp_path / neighbour), given)):
        state = make_state(seed=seed)
        folder = orbax_folder.absolute(place)
        with store.Checkpoints(folder, 1, RUN) as checkpoints:
            for number in (1, 2):
                checkpoints.save(number, state)
        assert os.listdir(place) == ["2"]
        found = identity.FoundCheckpoint(folder, 2, orbax_folder.read_run(folder, 2))
        _, restored = store.restore(found, zeros(state))
        jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert Path(os.fspath(folder)).is_absolute()


def test_a_checkpoint_counts_when_it_was_read_back(folder, monkeypatch):
    """One that does not costs none of those before it."""
    with store.Checkpoints(folder, 1, RUN) as checkpoints:
        checkpoints.save(1, make_state())
    restored = orbax_folder.restored
    monkeypatch.setattr(orbax_folder, "restored", lambda *a: zeros(restored(*a)))
    with (
        pytest.raises(errors.UserError, match="something else; that of step 1 is"),
        store.Checkpoints(folder, 1, RUN) as checkpoints,
    ):
        checkpoints.save(2, make_state())
        checkpoints.save(3, make_state())
    assert orbax_folder.finished_steps(folder) == [1, 2]


def test_two_writers_of_one_folder_do_not_replace_each_other(folder):
    """Where no lock told them, as in a bucket.

    Neither writes while the other opens: Orbax removes what is half written there, in
    a thread that only its own writer waits for.
    """
    with store.Checkpoints(folder, 1, RUN) as first:
        first.save(1, make_state(seed=1))
        first.wait()
        with store.Checkpoints(folder, 2, RUN) as second:
            second.save(2, make_state(seed=2))
            second.wait()
            with pytest.raises(errors.UserError, match="step 2 is not of this run"):
                first.save(3, make_state(seed=3))
    assert orbax_folder.finished_steps(folder) == [1, 2]


def test_what_only_has_a_number_for_a_name_is_no_checkpoint(folder):
    for name in ("2024", "0", "9" * 200):
        (Path(folder) / name).mkdir(parents=True)
        (Path(folder) / name / "cat.jpg").write_bytes(b"mine")
    assert orbax_folder.finished_steps(folder) == []


def test_a_checkpoint_of_other_rows_is_refused(folder):
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        checkpoints.save(3, make_state(vectors=2))
    with pytest.raises(errors.UserError, match="other shapes"):
        store.restore(identity.FoundCheckpoint(folder, 3, RUN), make_state(vectors=1))


@contextlib.contextmanager
def full_disk():
    """Yields what fills the disk: then no file may grow past 1,000 bytes.

    Not a fixture: pytest writes to a file, too, before fixtures end.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITING = (
    'OUT_OF_RANGE: Error writing "a/0" in OCDBT database at local file "/a [1]/": '
    'Failed writing: "/a [1]/d/76.__lock": Failed to write 8084 bytes to file 17: '
)
LOCATIONS = " [source locations='tensorstore/a.cc:380\ntensorstore/b.cc:574']"


@pytest.mark.parametrize(
    "text",
    [
        f"{WRITING}File too large",
        f"{WRITING}File too large [os_error_code='27']",
        f"{WRITING}File too large{LOCATIONS}",
        f"{WRITING}File too large{LOCATIONS} [os_error_code='27']",
        f"{WRITING}File too large [os_error_code='27']{LOCATIONS}",
        f"In a thread: {WRITING}File too large [os_error_code='27'], while saving",
    ],
)
def test_what_the_system_says_is_found_whatever_tensorstore_adds(text):
    assert orbax_folder.reason(ValueError(text)) == "File too large"


def test_a_full_disk_during_a_checkpoint_loses_nothing(folder, capfd):
    state = make_state()
    with (
        pytest.raises(
            errors.UserError, match=r"File too large; that of step 1 is"
        ) as e,
        full_disk() as fill,
        store.Checkpoints(folder, None, RUN) as checkpoints,
    ):
        checkpoints.save(1, state)
        checkpoints.wait()
        fill()
        checkpoints.save(2, make_state(seed=2))
        checkpoints.wait()
    assert "\n" not in str(e.value)
    assert "Traceback" not in capfd.readouterr().err
    assert orbax_folder.finished_steps(folder) == [1]
    _, restored = store.restore(identity.FoundCheckpoint(folder, 1, RUN), zeros(state))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_the_next_run_writes_where_the_disk_was_full(folder):
    with (
        pytest.raises(errors.UserError, match="there is none yet"),
        full_disk() as fill,
        store.Checkpoints(folder, None, RUN) as checkpoints,
    ):
        fill()
        checkpoints.save(1, make_state())
        checkpoints.wait()
    with store.Checkpoints(folder, None, RUN) as checkpoints:
        checkpoints.save(1, make_state())
    assert os.listdir(folder) == ["1"]


def test_a_full_disk_during_an_export_keeps_the_last_one(tmp_path):
    pictures = np.zeros((1, 8, 8, 3), np.uint8)

    def write(value, width):
        rows = np.full((1, width), value, np.float32)
        with atomic.one_line_errors("output_dir", "make room"):
            concept_folder.export_concept(
                tmp_path,
                find.Embedding("<toy>", {"text_encoder": rows}),
                "object",
                pictures,
            )

    write(1.0, 8)
    before = runs.content(tmp_path)
    with (
        pytest.raises(errors.UserError, match="File too large; make room"),
        full_disk() as fill,
    ):
        fill()
        write(2.0, 768)
    assert runs.content(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if atomic.is_leftover(path)]


def test_leftovers_of_a_killed_process_are_taken_away(tmp_path):
    kept = tmp_path / "samples"
    kept.mkdir()
    for name in (".report.html.123.tmp", "samples/.0.png.9.tmp"):
        (tmp_path / name).write_text("half")
    for name in (".mine.tmp", "samples/0.png", ".env"):
        (tmp_path / name).write_text("mine")
    atomic.remove_leftovers(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert left == [".env", ".mine.tmp", "samples/0.png"]


# Holds the lock by the system's own call, says so, and waits.
_HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


def test_one_writer_and_a_lock_that_dies_with_it(tmp_path):
    config = runs.make_config("model", "pictures", tmp_path / "run")
    config.output_dir.mkdir()
    lock = config.output_dir / LOCK_NAME
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(lock)], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(errors.UserError, match="another run is writing"),
            RunFolder(config),
        ):
            pass
        holder.kill()
        holder.wait()
        assert lock.exists()
        with RunFolder(config) as ours:
            ours.create()
            with pytest.raises(errors.UserError, match="another run is writing"):
                RunFolder(
                    config.model_copy(update={"overwrite_output_dir": True})
                ).__enter__()
    # Nothing stays behind that could block the next run.
    assert os.listdir(config.output_dir) == [CONFIG_NAME]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunFolder(runs.make_config("m", "p", tmp_path / "run")) as ours:
        ours.create()
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_of_two_runs_that_start_together_one_goes_on(tmp_path):
    """Neither wrote anything when the other looked."""
    config = runs.make_config("model", "pictures", tmp_path / "run")
    (tmp_path / "run").mkdir()
    with (
        RunFolder(config) as first,
        RunFolder(config) as second,
    ):
        assert os.listdir(config.output_dir) == []
        second.create()
        with pytest.raises(errors.UserError, match="another run is writing"):
            first.create()
        assert LOCK_NAME in os.listdir(config.output_dir)
    assert os.listdir(config.output_dir) == [CONFIG_NAME]


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """The keys of a run that has ended after two steps."""
    folder = tmp_path_factory.mktemp("finished")
    pictures = runs.draw_pictures(folder / "pictures")
    arguments = tiny_model, pictures, folder / "run"
    config = runs.make_config(*arguments, max_train_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        runs.skip_networks(patch)
        training_run.train_concepts(config, progress=False)
    return arguments


def other_model(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "model")
    file = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    return {"pretrained_model_name_or_path": str(tmp_path / "model")}


def other_pictures(finished, tmp_path):
    return {"train_data_dir": runs.draw_pictures(tmp_path / "others", seed=1)}


def other_templates(finished, tmp_path):
    (tmp_path / "t.txt").write_text("a drawing of {}\n")
    return {"template_file": tmp_path / "t.txt"}


# What differs from the finished run -> what the one line says.
REFUSED = {
    "model": (other_model, "pretrained_model_name_or_path: .* fingerprint .*, found"),
    "pictures": (other_pictures, "train_data_dir: .* fingerprint .*, found"),
    "templates": (other_templates, "template_file: .* fingerprint .*, found"),
    "rate": (lambda *_: {"learning_rate": 1.0}, "learning_rate was 0.002, is 1.0"),
    "no checkpoint": (
        lambda *_: {"resume_from_checkpoint": "nowhere/7"},
        "no checkpoint nowhere/7",
    ),
    "used": (lambda *_: {"resume_from_checkpoint": None}, "overwrite_output_dir"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_going_on_with_something_else_is_refused(case, finished, tmp_path):
    make, expected = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in finished[2].rglob("*")}
    given = {"resume_from_checkpoint": "latest"} | make(finished, tmp_path)
    config = Config(**(runs.keys(*finished) | given))
    with pytest.raises(errors.UserError, match=expected):
        training_run.train_concepts(config, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in finished[2].rglob("*")}


def test_other_versions_are_told(finished, caplog, monkeypatch):
    folder = store.folder_of(runs.make_config(*finished))
    found = identity.FoundCheckpoint(folder, 2, orbax_folder.read_run(folder, 2))
    identity.check_fingerprints(found, found.run["fingerprints"])
    assert not caplog.records
    told = f"ti_flax {ti_flax.__version__} -> 9.9"
    monkeypatch.setattr(ti_flax, "__version__", "9.9")
    identity.check_fingerprints(found, found.run["fingerprints"])
    assert told in caplog.text


@pytest.mark.parametrize("name", get_args(LrScheduler))
def test_a_schedule_has_an_end_where_the_number_of_steps_changes_it(name):
    short, long = (
        learning_rate_schedule(name, 0.5, 4, steps, decay_steps=8) for steps in (40, 80)
    )
    rates = [
        [float(schedule(jnp.array(t))) for t in range(40)] for schedule in (short, long)
    ]
    assert schedule_has_end(name) == (rates[0] != rates[1])


def test_overwriting_drops_the_checkpoints_of_the_run_before(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[2], folder)
    (folder / "notes.txt").write_text("mine")
    config = runs.make_config(*finished[:2], folder, overwrite_output_dir=True, seed=1)
    with RunFolder(config) as ours:
        ours.create()
    assert runs.checkpoints(folder) == []
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished, tmp_path):
    config = runs.make_config(
        *finished[:2], tmp_path / "run", resume_from_checkpoint="latest"
    )
    with RunFolder(config) as ours:
        ours.create()
    (config.output_dir / ".learned_embeds.bin.1.tmp").write_text("half")
    with RunFolder(config) as ours:
        assert ours.found is None
        ours.create()
    assert os.listdir(config.output_dir) == [CONFIG_NAME]
    other = config.model_copy(update={"seed": 1})
    with (
        pytest.raises(errors.UserError, match="not empty"),
        RunFolder(other),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"output_dir": "gs://bucket/run"},
            "give one, and the bucket as checkpoint_dir",
        ),
        ({"checkpoint_dir": "gs://bucket/run"}, "install gcsfs"),
    ],
    ids=["output", "checkpoints"],
)
def test_what_a_bucket_cannot_hold_is_said_in_one_line(tmp_path, given, expected):
    if "checkpoint_dir" in given and shutil.which("gcsfs"):
        pytest.skip("gcsfs is installed")
    values = runs.keys("model", "pictures", tmp_path / "run") | given
    with (
        pytest.raises(errors.UserError, match=expected),
        RunFolder(Config(**values)),
    ):
        pass


def test_orbax_does_not_repeat_what_it_raises(folder):
    level = logging.getLogger("absl").level
    with store.Checkpoints(folder, None, RUN):
        assert logging.getLogger("absl").level == logging.CRITICAL
    assert logging.getLogger("absl").level == level
