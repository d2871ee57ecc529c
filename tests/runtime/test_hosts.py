"""Several processes, each with devices and a folder of its own, train as one."""

import functools
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import runs

from ti_flax.config import run_keys
from ti_flax.formats import find
from ti_flax.runtime import hosts as runtime_hosts
from ti_flax.runtime import log

ROOT = Path(__file__).parents[2]
DEVICES = 4  # of all processes together


class Ended(NamedTuple):
    code: int
    stderr: str
    seconds: float


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(program, folder, process, processes, port, *arguments, devices=None):
    """One process of a job, as on a host of its own: with its own current folder."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices or DEVICES // processes),
    }
    return subprocess.Popen(
        [
            *(sys.executable, *program),
            *(f"--coordinator_address=127.0.0.1:{port}", f"--process_id={process}"),
            *(f"--num_processes={processes}", *arguments),
        ],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(running, seconds=1200):
    """How each process ended; none may outlive the time."""
    running, began, ended = list(running), time.monotonic(), []
    try:
        for process in running:
            _, stderr = process.communicate(timeout=seconds)
            ended.append(Ended(process.returncode, stderr, time.monotonic() - began))
    finally:
        for process in running:
            process.kill()
    return ended


@pytest.fixture
def hosts(tmp_path):
    """Makes folders of hosts, each with the same pictures in `pictures`."""

    def make(count):
        folders = [tmp_path / f"host{i}" for i in range(count)]
        for folder in folders:
            runs.draw_pictures(folder / "pictures")
        return folders

    return make


def arguments(small_model, **keys):
    settings = {
        "pretrained_model_name_or_path": small_model,
        "train_data_dir": "pictures",
        "placeholder_token": "<toy>",
        "initializer_token": "toy",
        "num_vectors": 2,
        "resolution": 32,
        "train_batch_size": 4,
        "max_train_steps": 4,
        "output_dir": "out",
        **keys,
    }
    return [f"--{key}={value}" for key, value in settings.items()]


TRAIN = ["-m", "ti_flax.train"]

# Trains with the frozen weights whole and split, in one start of the processes.
_TRAIN_EACH_WAY = f"""
import os, sys
sys.path.append({str(ROOT / "tests")!r})
import fake_model
import jax
from ti_flax.config import run_config
from ti_flax.models import base_model
from ti_flax.runtime import errors, hosts
from ti_flax.training import run

def main():
    split, kind = set(), base_model.BaseModel
    if os.environ["NETWORKS"] == "no":
        base_model.open_model, kind = fake_model.open_fake, fake_model.FakeModel
    load = kind.load
    def watched(self, component, sharding=None):
        params = load(self, component, sharding)
        for leaf in jax.tree.leaves(params):
            if not leaf.is_fully_replicated:
                split.add((leaf.shape, leaf.addressable_shards[0].data.shape))
        return params
    kind.load = watched
    first = run_config.load_config(sys.argv[1:])
    with hosts.job(first):
        for fsdp in map(int, os.environ["WAYS"].split()):
            split.clear()
            run.train_concepts(first.model_copy(update={{
                "fsdp": fsdp, "output_dir": first.output_dir / str(fsdp)}}))
            assert bool(split) == (fsdp > 1), split
            for shape, shard in split:
                parts = sorted(a // b for a, b in zip(shape, shard))
                assert parts == [1] * (len(shape) - 1) + [fsdp]
errors.run(main)
"""
EACH_WAY = ["-W", "error", "-c", _TRAIN_EACH_WAY]


@pytest.fixture(scope="session")
def learn_alone(small_model, tmp_path_factory):
    """The rows that one process learns on one device."""

    @functools.cache
    def learn(networks):
        folder = tmp_path_factory.mktemp("alone")
        runs.draw_pictures(folder / "pictures")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WAYS", "1")
            patch.setenv("NETWORKS", networks)
            argv = arguments(small_model)
            (end,) = wait([start(EACH_WAY, folder, 0, 1, 0, *argv, devices=1)])
        assert end.code == 0, end.stderr
        return find.load_embedding(folder / "out" / "1").rows["text_encoder"]

    return learn


# With networks that cost nothing, and before a release with those of a model.
@pytest.mark.parametrize(
    ("processes", "ways", "networks"),
    [
        (2, "2", "no"),
        pytest.param(2, "1 2", "yes", marks=pytest.mark.slow),
        pytest.param(4, "1 4", "yes", marks=pytest.mark.slow),
    ],
)
def test_processes_learn_the_rows_of_one_and_only_the_first_writes(
    processes, ways, networks, hosts, small_model, learn_alone, monkeypatch
):
    folders, port, alone = hosts(processes), free_port(), learn_alone(networks)
    monkeypatch.setenv("WAYS", ways)
    monkeypatch.setenv("NETWORKS", networks)
    ended = wait(
        start(EACH_WAY, folder, i, processes, port, *arguments(small_model))
        for i, folder in enumerate(folders)
    )
    assert [end.code for end in ended] == [0] * processes, "\n".join(
        end.stderr for end in ended
    )
    for fsdp in ways.split():
        output = folders[0] / "out" / fsdp
        rows = find.load_embedding(output / find.SAFETENSORS_NAME).rows["text_encoder"]
        # Sums in another order: rounding of float32, once through Adam's quotient. The
        # fakes' gradient is one number for all elements, of terms that cancel: 2.3e-6.
        atol = 2e-6 if networks == "yes" else 1e-5
        np.testing.assert_allclose(rows, alone, rtol=0, atol=atol)
        lines = (output / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    for folder in folders[1:]:
        assert [path.name for path in folder.iterdir()] == ["pictures"]


@pytest.mark.slow
def test_a_batch_of_4_on_two_hosts_of_3_devices_learns_the_rows_of_one(
    hosts, small_model, learn_alone
):
    folders, port = hosts(2), free_port()
    ended = wait(
        start(TRAIN, folder, i, 2, port, *arguments(small_model), devices=3)
        for i, folder in enumerate(folders)
    )
    assert [end.code for end in ended] == [0, 0], ended
    assert "4 examples on 6 devices take as long as 6" in ended[0].stderr
    learned = find.load_embedding(folders[0] / "out" / find.SAFETENSORS_NAME)
    rows, alone = learned.rows["text_encoder"], learn_alone("yes")
    # Sums in another order, as above.
    np.testing.assert_allclose(rows, alone, rtol=0, atol=2e-5)


def last_line(end):
    return end.stderr.strip().splitlines()[-1]


def test_a_host_that_fails_ends_all_with_its_message(hosts, small_model):
    folders, port = hosts(2), free_port()
    for picture in (folders[1] / "pictures").iterdir():
        picture.unlink()
    ended = wait(
        start(TRAIN, folder, i, 2, port, *arguments(small_model))
        for i, folder in enumerate(folders)
    )
    assert [end.code for end in ended] == [2, 2], ended
    assert last_line(ended[1]).startswith("error: train_data_dir: no readable picture")
    assert last_line(ended[0]).startswith("error: process 1 (")
    assert "train_data_dir: no readable picture in pictures" in last_line(ended[0])
    assert not (folders[0] / "out").exists()


def test_hosts_with_unequal_pictures_are_told_which(hosts, small_model):
    folders, port = hosts(2), free_port()
    (folders[1] / "pictures" / "1.png").unlink()
    ended = wait(
        start(TRAIN, folder, i, 2, port, *arguments(small_model))
        for i, folder in enumerate(folders)
    )
    for end in ended:
        assert end.code == 2, end
        assert "error: " in last_line(end)
        assert "train_data_dir: process 1 (" in last_line(end)
        assert "has 2.png" in last_line(end) and "has 1.png" in last_line(end)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_does_not_wait_for_ever_for_the_others(process, hosts, small_model):
    (folder,), port = hosts(1), free_port()
    waits = "--initialization_timeout=3"
    (end,) = wait(
        [start(TRAIN, folder, process, 2, port, *arguments(small_model), waits)], 60
    )
    assert end.code == 75  # run again
    (line,) = end.stderr.strip().splitlines()
    assert line.startswith("error: not all processes met at 127.0.0.1:")
    assert "within 3 s" in line


def test_a_long_wait_for_the_others_is_told(monkeypatch):
    monkeypatch.setattr(runtime_hosts, "_PATIENT_SECONDS", 0.01)
    jax = runtime_hosts.jax
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: time.sleep(0.3))
    keys = run_keys.HostKeys(
        num_processes=2, process_id=1, coordinator_address="host:1234"
    )
    with log.heard_warnings() as heard:
        runtime_hosts._initialize(keys)
    (line,) = heard
    assert "waiting up to 300 s" in line and "host:1234" in line
    assert "num_processes 1" in line


# Process 1 fails in the middle of training, in Python or by being killed.
_FAIL_LATE = """
import os, signal, sys
import jax
from ti_flax.config import run_config
from ti_flax.runtime import errors, hosts, peers
from ti_flax.training import loop, run as training_run

def main():
    peers.SILENT_SECONDS = 20.0
    settings = run_config.load_config(sys.argv[1:])
    run = loop.run
    def failing(train_steps, *rest):
        def fails(state, num_steps):
            if jax.process_index() == 1 and state.step[0] > 0:
                if os.environ["FAIL"] == "raise":
                    raise RuntimeError("a wire is loose")
                os.kill(os.getpid(), signal.SIGKILL)
            return train_steps(state, num_steps)
        return run(fails, *rest)
    loop.run = failing
    with hosts.job(settings):
        training_run.train_concepts(settings)
errors.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["raise", "kill"])
def test_a_host_that_fails_while_training_ends_all(
    fail, hosts, small_model, monkeypatch
):
    folders, port = hosts(2), free_port()
    monkeypatch.setenv("FAIL", fail)
    ended = wait(
        start(["-c", _FAIL_LATE], folder, i, 2, port, *arguments(small_model))
        for i, folder in enumerate(folders)
    )
    if fail == "raise":
        assert [end.code for end in ended] == [1, 1]
        assert last_line(ended[1]) == "error: RuntimeError: a wire is loose"
        assert last_line(ended[0]).startswith("error: process 1 (")
        assert last_line(ended[0]).endswith("): RuntimeError: a wire is loose")
    else:
        assert ended[1].code == -9 and ended[0].code == 1
        assert last_line(ended[0]).startswith("error: process 1 (")
        assert "has not been heard of for 20 s" in last_line(ended[0])
    # Neither JAX's stack trace nor its complaints stand beside the line.
    assert "stack trace" not in ended[0].stderr
    assert "coordination" not in ended[0].stderr
    assert not (folders[0] / "out" / find.SAFETENSORS_NAME).exists()


TWO = "10.0.0.1,10.0.0.2"
MACHINES = {
    "laptop": ({}, False),
    "alone under SLURM": ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
    "a shell in an allocation of SLURM": (
        {
            "SLURM_STEP_NODELIST": "n1",
            "SLURM_NTASKS": "4",
            "SLURM_STEP_NUM_TASKS": "1",
        },
        False,
    ),
    "SLURM": ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
    "GKE slice": ({"TPU": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
    "GKE host": ({"TPU": "1", "TPU_WORKER_HOSTNAMES": "a"}, False),
    "two slices": (
        {"TPU": "1", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        True,
    ),
    # Without a TPU libtpu leaves a sentence with commas there.
    "libtpu's note": ({"TPU_WORKER_HOSTNAMES": "WARNING: unknown, please set"}, False),
    "TPU pod": ({"TPU": "1", "METADATA": TWO}, True),
    "TPU VM": ({"TPU": "1", "METADATA": "10.0.0.1"}, False),
    "Kaggle": ({"TPU": "1", "METADATA": ""}, False),
    "Colab": ({"TPU": "1", "METADATA": TWO, "TPU_SKIP_MDS_QUERY": "1"}, False),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_whether_there_are_other_hosts_is_found_out(machine, monkeypatch):
    env, several = MACHINES[machine]
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime_hosts, "has_tpu", lambda: "TPU" in env)

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Metadata-Flavor"] == "Google" and env["METADATA"]
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(env["METADATA"].encode())

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        serve = functools.partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        assert runtime_hosts.are_several(run_keys.HostKeys()) == several
        server.shutdown()
    alone = run_keys.HostKeys(num_processes=1)
    assert not runtime_hosts.are_several(alone)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"coordinator_address": "a:1"}, "together"),
        (
            {"coordinator_address": "a", "num_processes": 2, "process_id": 0},
            "HOST:PORT",
        ),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "2 >= 2"),
    ],
)
def test_hosts_given_wrongly_are_told(keys, told):
    with pytest.raises(ValueError, match=told):
        run_keys.HostKeys(**keys)


# Process 1 gets a signal when it has read the metrics of step AT.
_SIGNALLED = """
import os, signal, sys
from ti_flax import train
from ti_flax.runtime import errors, peers
from ti_flax.training import divergence

peers.SILENT_SECONDS = 20.0
add = divergence.DivergenceGuard.add
def add_and_signal(self, metrics, num_steps):
    before = self._step
    add(self, metrics, num_steps)
    if before < int(os.environ["AT"]) <= self._step:
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
if "--process_id=1" in sys.argv:
    divergence.DivergenceGuard.add = add_and_signal
errors.run(train.main)
"""


@pytest.mark.slow
def test_one_of_two_hosts_is_stopped_then_killed_and_the_run_goes_on(
    hosts, small_model, monkeypatch
):
    folders = hosts(2)

    def run(output_dir, signal_name, at):
        monkeypatch.setenv("SIGNAL", signal_name)
        monkeypatch.setenv("AT", str(at))
        port = free_port()
        given = arguments(
            small_model,
            max_train_steps=8,
            checkpointing_steps=2,
            output_dir=output_dir,
            resume_from_checkpoint="latest",
        )
        return wait(
            start(["-c", _SIGNALLED], folder, i, 2, port, *given)
            for i, folder in enumerate(folders)
        )

    whole, ours = folders[0] / "whole", folders[0] / "out"
    assert [end.code for end in run("whole", "SIGTERM", 99)] == [0, 0]
    stopped = run("out", "SIGTERM", 3)
    assert [end.code for end in stopped] == [75, 75], stopped
    steps = runs.checkpoints(ours)
    # After the dispatch that ran when the signal came, on both.
    assert 3 <= steps[-1] <= 6 and f"{steps[-1]} of 8 steps" in last_line(stopped[0])
    killed = run("out", "SIGKILL", steps[-1] + 1)
    assert killed[1].code == -9 and killed[0].code not in (0, 75)
    assert [end.code for end in run("out", "SIGTERM", 99)] == [0, 0]
    assert runs.content(ours) == runs.content(whole)
