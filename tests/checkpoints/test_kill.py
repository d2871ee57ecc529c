"""A run that is killed again and again ends with the files of one that was not."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import many
import pytest
import runs

TESTS = Path(__file__).parents[1]

# Kills itself at a chosen moment of its writing: the moments between two of its calls
# are those at which files differ. What C++ writes is met by the clock alone.
_PREAMBLE = f"""
import os, signal, sys
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
last, writes = int(sys.argv.pop(1)), 0
output_dir = next(a.split("=")[1] for a in sys.argv if a.startswith("--output_dir"))
def count(event, arguments):
    global writes
    if event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"):
        if (str(arguments[0]) + "/").startswith(output_dir + "/"):
            writes += 1
            if writes == last:
                os.kill(os.getpid(), signal.SIGKILL)
import pytest, runs
from ti_flax import train
from ti_flax.runtime import errors
"""
_RUN = """
sys.addaudithook(count)
print("ready", flush=True)
errors.run(train.main)
print(writes)
"""
WITHOUT_NETWORKS = _PREAMBLE + "runs.skip_networks(pytest.MonkeyPatch())" + _RUN
WITH_NETWORKS = _PREAMBLE + _RUN


def start(program, values, last_write=0):
    """A run that has been imported, so that what follows is its own time."""
    compiled = values["output_dir"] + "-compiled"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(last_write), *runs.to_argv(values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": compiled,
        },
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process):
    """The number of its writes, when nothing killed the run."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return int(out)


def kill_and_restart(program, values, kills, seed, content=runs.content):
    """Compares runs that are killed, `kills` times in all, with one that is not.

    A run that comes to its end is compared, and another one begins, which compiles
    its programs anew: that is most of its time, and a moment to be killed at too.
    """
    whole = {**values, "output_dir": values["output_dir"] + "-whole"}
    first = start(program, whole)
    begun = time.monotonic()
    writes = finish(first)
    seconds = time.monotonic() - begun
    expected = content(Path(whole["output_dir"]))
    chance = random.Random(seed)
    # As before `latest` finds a checkpoint, so after the last: the same command.
    values = {"resume_from_checkpoint": "latest", **values}
    output = Path(values["output_dir"])
    killed = 0
    while killed < kills:
        by_clock = killed % 2
        last_write = 0 if by_clock else chance.randint(1, writes)
        process = start(program, values, last_write)
        try:
            limit = chance.uniform(0, seconds) if by_clock else None
            _, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
        assert process.returncode in (0, -9), err
        killed += process.returncode == -9
        if process.returncode == 0:
            assert content(output) == expected
            shutil.rmtree(output)
            shutil.rmtree(values["output_dir"] + "-compiled")
    finish(start(program, values))
    assert content(output) == expected


@pytest.fixture
def values(tiny_model, tmp_path):
    pictures = runs.draw_pictures(tmp_path / "pictures")
    return runs.keys(tiny_model, pictures, tmp_path / "run", train_batch_size=2)


def test_a_run_killed_twice_ends_bit_identical(values):
    """Without the networks; the slow test below has them."""
    kill_and_restart(
        WITHOUT_NETWORKS, {**values, "max_train_steps": 12}, kills=2, seed=1
    )


@pytest.mark.slow
def test_a_run_killed_at_thirty_moments_ends_bit_identical(values):
    """In compilation, step, checkpoint, export and preview."""
    more = {
        "max_train_steps": 24,
        "validation_prompt": "a <toy>",
        "validation_steps": 3,
        "num_validation_images": 1,
    }
    kill_and_restart(WITH_NETWORKS, values | more, kills=30, seed=0)


def of_all(folder):
    """What two runs of a list of concepts must agree in."""
    return {path.name: runs.content(path) for path in folder.iterdir() if path.is_dir()}


def list_of(model, folder, listed):
    """The keys of a run of a list, three at once."""
    path = many.write_list(folder, listed)
    values = runs.keys(model, "", folder / "run", concepts=path, slots=3)
    return {
        key: value
        for key, value in values.items()
        if key not in ("train_data_dir", "placeholder_token")
    }


@pytest.mark.slow
def test_a_list_that_is_killed_ends_bit_identical(tiny_model, tmp_path):
    """Without the networks; the slow test below has them."""
    listed = {name: own for name, own in many.LIST.items() if name != "bird"}
    values = list_of(tiny_model, tmp_path, listed)
    kill_and_restart(WITHOUT_NETWORKS, values, kills=1, seed=2, content=of_all)


@pytest.mark.slow
def test_a_list_of_thirty_killed_at_twenty_moments_ends_bit_identical(
    tiny_model, tmp_path
):
    listed = {
        f"{name}{number}": {**own, "seed": number}
        for number in range(6)
        for name, own in many.LIST.items()
    }
    more = {"validation_prompt": "a {}", "num_validation_images": 1}
    values = list_of(tiny_model, tmp_path, listed) | more
    kill_and_restart(WITH_NETWORKS, values, kills=20, seed=0, content=of_all)
