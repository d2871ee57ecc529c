"""How the processes of a job end: where one fails or is lost, all do, with one line.

They tell each other through the key-value store of JAX's coordinator, which process 0
serves. JAX finds a lost process by itself, but then aborts all others with a stack
trace of its own; so it is given longer than we wait.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback

import jax

# JAX has no public way to its key-value store; Orbax takes it from here as well.
from jax._src import distributed as jax_distributed
from tqdm import tqdm

from ti_flax.runtime.errors import (
    AGAIN_EXIT_CODE,
    USAGE_EXIT_CODE,
    Stopped,
    UserError,
    one_line,
)

# JAX's own limit; it hears of a process in the machine's threads, we in Python's.
SILENT_SECONDS = 100.0
# JAX's, where ours cannot be kept.
JAX_SILENT_SECONDS = 1000

_FAILED = "ti_flax/failed"
_ALIVE = "ti_flax/alive"
_LOOK_SECONDS = 1.0
_FAULT_EXIT_CODE = 1
# Taken for good by the thread that ends the process, so that one message is the last.
_speaking = threading.Lock()


class Watch:
    """Ends this process when another fails or is lost; its main thread may be waiting.

    Two threads: a lost process 0 leaves a question to it without an answer.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._heard_at = time.monotonic()  # of process 0, by others and by itself
        # What each process has said last, and when it was heard.
        self._beats: dict[int, tuple[str, float]] = {}
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._ask, self._wait_for_answers)
        ]

    def start(self) -> None:
        self._beats = {
            process: ("", time.monotonic()) for process in range(jax.process_count())
        }
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Other processes may now end or fail as they like."""
        self._over.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        client, process = jax_distributed.global_state.client, jax.process_index()
        beat = 0
        while not self._over.wait(_LOOK_SECONDS):
            beat += 1
            said = f"{beat} {socket.gethostname()}"
            try:
                client.key_value_set(f"{_ALIVE}/{process}", said, allow_overwrite=True)
                failures = client.key_value_dir_get(_FAILED)
                beats = client.key_value_dir_get(_ALIVE)
            except jax.errors.JaxRuntimeError:  # no answer; `_wait_for_answers` counts
                continue
            self._heard_at = time.monotonic()
            if failures and not self._over.is_set():
                _, failure = failures[0]
                code, message = failure.split(" ", 1)
                _speaking.acquire()
                _leave(message, int(code))
            if process == 0:
                self._listen(beats)

    def _listen(self, said: list[tuple[str, str]]) -> None:
        """Process 0 ends the job when another has said nothing new for too long."""
        now = time.monotonic()
        for key, beat in said:
            process = int(key.rpartition("/")[2])
            if beat != self._beats[process][0]:
                self._beats[process] = beat, now
        for process, (beat, heard_at) in self._beats.items():
            if now - heard_at > SILENT_SECONDS and not self._over.is_set():
                host = beat.partition(" ")[2] or "it has said nothing yet"
                stop_all(UserError(_lost(process, host)), _FAULT_EXIT_CODE)

    def _wait_for_answers(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            if time.monotonic() - self._heard_at > SILENT_SECONDS:
                _speaking.acquire()
                exit_now(_lost(0, "the coordinator"), _FAULT_EXIT_CODE)


def _lost(process: int, host: str) -> str:
    return (
        f"process {process} ({host}) has not been heard of for {SILENT_SECONDS:.0f} s: "
        "it was killed, or its machine or network is gone; start every process again, "
        "resume_from_checkpoint latest resumes from the last checkpoint"
    )


def stop_all(error: BaseException, code: int | None = None) -> None:
    """Ends this process and, by its message and exit code, all others.

    `code` stands for that of the error, which without it is a usage error's, or 1 with
    a traceback for what is a fault.
    """
    _speaking.acquire()
    message = str(error)
    if code is None:
        code = _code_of(error)
        if code == _FAULT_EXIT_CODE and not isinstance(error, SystemExit):
            traceback.print_exception(error)
            message = f"{type(error).__name__}: {one_line(error)}"
    process = jax.process_index()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
        jax_distributed.global_state.client.key_value_set(
            f"{_FAILED}/{process}",
            f"{code} process {process} ({socket.gethostname()}): {message}",
        )
    _leave(message, code)


def _code_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, Stopped):
        return AGAIN_EXIT_CODE
    return USAGE_EXIT_CODE if isinstance(error, UserError) else _FAULT_EXIT_CODE


def _leave(message: str, code: int) -> None:
    if jax.process_index() == 0:
        # The others hear from here what has failed, and JAX aborts them without it.
        time.sleep(3 * _LOOK_SECONDS)
    exit_now(message, code)


def exit_now(message: str, code: int) -> None:
    """Ends the process whatever its threads, and other processes, wait for."""
    with tqdm.external_write_mode(sys.stderr):  # on a line without a progress bar
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)
