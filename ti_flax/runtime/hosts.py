"""Several processes, one a host, that train as one.

JAX's own runtime connects them and its compiler moves the numbers; this module finds
out whether there are several, and sees to it that they start, agree and end together.
Where one fails, `peers` ends the others.
"""

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

# JAX has no public way to its key-value store; Orbax takes it from here as well.
from jax._src import distributed as jax_distributed

from ti_flax.runtime import peers
from ti_flax.runtime.errors import AGAIN_EXIT_CODE, Stopped, UserError, one_line

_log = logging.getLogger("ti_flax")

_END = "ti_flax/end"
_PATIENT_SECONDS = 5.0  # until a wait for the others is told
# Of a process that fails `peers` hears, so that no wait need be short.
_STOP_MS = 30 * 1000
_FOREVER_MS = 24 * 3600 * 1000
# Gathers are told apart by their order, which is the same in every process.
_serial = itertools.count()


@runtime_checkable
class JobSettings(Protocol):
    """Where the processes of a job meet; `config.run_keys.HostKeys` explains each."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    initialization_timeout: int  # seconds


@contextlib.contextmanager
def job(hosts: JobSettings) -> Iterator[None]:
    """Runs the block as one of the processes that `hosts` or the machine tells of.

    They leave the block together. An exception in one of them ends all, each with the
    message and the exit code of the one that failed. Alone, the block runs as it is.

    Raises:
        UserError: the processes cannot be connected.
    """
    if not are_several(hosts):
        yield
        return
    _initialize(hosts)
    if jax.process_index():
        _log.setLevel(logging.ERROR)  # the first process speaks for all
    watch = peers.Watch()
    watch.start()
    leaving = None
    try:
        try:
            yield
        except (SystemExit, Stopped) as asked:
            leaving = asked
        # The first process may still be writing. One that is asked to stop while the
        # others are not will not see them here.
        wait_ms = _STOP_MS if leaving else _FOREVER_MS
        jax_distributed.global_state.client.wait_at_barrier(_END, wait_ms)
    except BaseException as error:
        watch.end()
        peers.stop_all(leaving or error)
    watch.end()
    watch.join()
    jax.distributed.shutdown()
    if leaving is not None:
        raise leaving


def check_equal(key: str, lines: Iterable[str]) -> None:
    """Every process must have the same lines about `key`.

    Raises:
        UserError: in every process, with the first line that differs.
    """
    ours = [socket.gethostname(), *lines]
    (first, *expected), *others = map(json.loads, _gather(json.dumps(ours)))
    for process, (host, *found) in enumerate(others, 1):
        pairs = itertools.zip_longest(found, expected, fillvalue="nothing")
        for theirs, right in pairs:
            if theirs != right:
                raise UserError(
                    f"{key}: process {process} ({host}) has {theirs} where process 0 "
                    f"({first}) has {right}; give every host the same"
                )


def broadcast_from_first(number: int) -> int:
    """The number that process 0 has, in every process; the devices are not waited for.

    What processes decide by their clocks would differ, and they would wait for each
    other for ever.
    """
    client = jax_distributed.global_state.client
    if client is None:
        return number
    name = f"ti_flax/first/{next(_serial)}"
    if jax.process_index() == 0:
        client.key_value_set(name, str(number))
        return number
    return int(client.blocking_key_value_get(name, _FOREVER_MS))


def text_from_first(text: str) -> str:
    """The text that process 0 has, in every process; the devices are not waited for."""
    return _gather(text)[0]


def any_process(flag: bool) -> bool:
    """True on every host if `flag` is on any; does not wait for the devices."""
    return "True" in _gather(str(flag))


def barrier() -> None:
    """Waits until every process has come here."""
    client = jax_distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"ti_flax/meet/{next(_serial)}", _FOREVER_MS)


def are_several(hosts: JobSettings) -> bool:
    """Whether flags or a scheduler say so; JAX finds out the rest.

    Asking JAX alone would not do: on a machine by itself its detection is an error, or
    waits for a metadata server that is not there.
    """
    if hosts.num_processes is not None:
        return hosts.num_processes > 1
    env = os.environ
    if "SLURM_STEP_NODELIST" in env:
        # A shell in an allocation of several tasks is a step of one.
        tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
        return int(tasks) > 1
    if not has_tpu():
        # A Kubernetes job on GPUs, which JAX finds through jax[k8s].
        found = importlib.util.find_spec("kubernetes") is not None
        return "JOB_COMPLETION_INDEX" in env and found
    if int(env.get("MEGASCALE_NUM_SLICES") or "1") > 1:
        return True
    workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if workers is None and "TPU_SKIP_MDS_QUERY" not in env:
        workers = _tpu_vm_workers()
    return "," in (workers or "")


def has_tpu() -> bool:
    """Whether the system shows the devices of a TPU."""
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _tpu_vm_workers() -> str:
    """The workers of the slice that this TPU VM belongs to; empty if none is told."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/"
        "worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # Colab, Kaggle: a TPU, but nobody to ask
        return ""


def _initialize(hosts: JobSettings) -> None:
    """Connects to the other processes within `initialization_timeout`.

    Where JAX gives up it aborts the process with a stack trace, so it is given longer
    than we wait, here and in `peers`.
    """
    seconds = hosts.initialization_timeout

    where = hosts.coordinator_address or "the address that the machine gives"

    def say() -> None:
        _log.warning(
            "waiting up to %s s for the other processes of this job at %s; "
            "num_processes 1 trains with this one alone",
            seconds,
            where,
        )

    def give_up() -> None:
        peers.exit_now(
            f"not all processes met at {where} within {seconds} s (coordinator_address,"
            " initialization_timeout); check that every host runs this command with a "
            "process_id of its own and that process 0 can be reached at that address; "
            "num_processes 1 trains with this process alone",
            AGAIN_EXIT_CODE,
        )

    timers = [
        threading.Timer(_PATIENT_SECONDS, say),
        threading.Timer(seconds, give_up),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            hosts.coordinator_address,
            hosts.num_processes,
            hosts.process_id,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=peers.JAX_SILENT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"cannot join the processes of this job ({one_line(error)}); give "
            "coordinator_address, num_processes and process_id"
        ) from error
    finally:
        for timer in timers:
            timer.cancel()


def _gather(text: str) -> list[str]:
    """What each process gave, in the order of the processes."""
    client = jax_distributed.global_state.client
    if client is None:
        return [text]
    name = f"ti_flax/gather/{next(_serial)}"
    client.key_value_set(f"{name}/{jax.process_index()}", text)
    return [
        client.blocking_key_value_get(f"{name}/{process}", _FOREVER_MS)
        for process in range(jax.process_count())
    ]
