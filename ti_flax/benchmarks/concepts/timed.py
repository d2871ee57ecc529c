"""The commands that train, each in a process of its own, and how long they took.

times.json has what is done, so that the same command goes on. A time is that of a
command which did all of its work: where one was stopped and went on, there is none.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ti_flax.benchmarks import turns
from ti_flax.benchmarks.concepts import drawn
from ti_flax.benchmarks.concepts.keys import ConceptsKeys, WorkKeys
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import AGAIN_EXIT_CODE, Stopped, UserError, listed
from ti_flax.training import ledger

_log = logging.getLogger(__name__)

QUEUE_NAME, ALONE_NAME, PYTORCH_NAME = "queue", "alone", "pytorch"
_TIMES_NAME, _SPENT_NAME = "times.json", "spent.json"
# Keys that may differ from those of the results that are there.
_MAY_DIFFER = ("concepts", "alone", "pytorch", "pytorch_python")


class Times:
    """What the commands took, as far as they have run with these keys.

    Attributes:
        queue: of all concepts in slots: `seconds` from start to exit, and `spent`, or
            None where that is not known.
        alone: seconds from start to exit by concept, or None where not known.
        pytorch: those of each run of PyTorch, by the key of that name.
    """

    def __init__(self, keys: ConceptsKeys) -> None:
        """Raises `UserError` where the folder has results of other keys."""
        self.queue: dict[str, Any] | None = None
        self.alone: dict[str, float | None] = {}
        self.pytorch: dict[str, list[float]] = {}
        self._path = keys.output_dir / _TIMES_NAME
        self._keys = _telling(keys)
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(
                f"output_dir: {self._path} cannot be read; choose another output_dir"
            ) from error
        others = [
            key for key in self._keys if saved["keys"].get(key) != self._keys[key]
        ]
        if others:
            raise UserError(
                f"output_dir: {keys.output_dir} has results with another "
                f"{listed(others)}; choose another output_dir"
            )
        self.alone, self.pytorch = saved["alone"], saved["pytorch"]
        if saved["queue"] and saved["queue"]["concepts"] == keys.concepts:
            self.queue = saved["queue"]

    def write(self) -> None:
        found = {"queue": self.queue, "alone": self.alone, "pytorch": self.pytorch}
        atomic.write_json(self._path, {"keys": self._keys, **found})


def train_in_queue(keys: ConceptsKeys, times: Times) -> None:
    """Trains all concepts in slots, unless that is done."""
    if times.queue is not None:
        _log.info("all %d words are there: not trained again", keys.concepts)
        return
    # Before the first concept there is none.
    begun = (keys.output_dir / QUEUE_NAME / ledger.NAME.format("")).exists()
    spent = keys.output_dir / _SPENT_NAME
    module = "ti_flax.benchmarks.concepts.train_queue"
    seconds = _seconds([module, str(spent), *queue_arguments(keys)])
    times.queue = {
        "concepts": keys.concepts,
        "seconds": None if begun else seconds,
        "spent": None if begun else json.loads(spent.read_text(encoding="utf-8")),
    }
    times.write()


def train_alone(keys: ConceptsKeys, times: Times) -> None:
    """Trains the first concepts with a command each, unless that is done."""
    for number, (name, own) in enumerate([*drawn.own_keys(keys).items()][: keys.alone]):
        if name in times.alone:
            continue
        _log.info("%s alone, %d of %d", name, number + 1, keys.alone)
        folder = keys.output_dir / ALONE_NAME / name
        begun = folder.exists()
        arguments = _arguments(keys, folder)
        arguments += [f"--{key}={value}" for key, value in own.items()]
        arguments.append("--resume_from_checkpoint=latest")
        seconds = _seconds(["ti_flax.train", *arguments])
        times.alone[name] = None if begun else seconds
        times.write()


def run_pytorch(keys: ConceptsKeys, times: Times) -> None:
    """Runs PyTorch for `alone` concepts, one after another, unless that is done."""
    seconds = times.pytorch.setdefault(keys.pytorch, [])
    for number in range(len(seconds), keys.alone):
        _log.info("PyTorch, %d of %d", number + 1, keys.alone)
        module = "ti_flax.benchmarks.concepts.train_torch"
        command = [module, keys.model_dump_json()]
        seconds.append(_seconds(command, keys.pytorch_python))
        times.write()


def queue_arguments(keys: ConceptsKeys) -> list[str]:
    """Those of `python -m ti_flax.train` for all concepts in slots."""
    folder = keys.output_dir
    return [
        *_arguments(keys, folder / QUEUE_NAME),
        f"--concepts={folder / drawn.LIST_NAME}",
        f"--slots={keys.slots}",
    ]


def _arguments(keys: ConceptsKeys, output_dir: Path) -> list[str]:
    shared = keys.output_dir / drawn.SETTINGS_NAME
    return [f"--config={shared}", f"--output_dir={output_dir}"]


def _telling(keys: ConceptsKeys) -> dict[str, Any]:
    """The keys that words and their times depend on."""
    own = {*WorkKeys.model_fields, "seed"}.difference(_MAY_DIFFER)
    return {**keys.model_dump(mode="json", include=own), **drawn.shared_keys(keys)}


def _seconds(command: Sequence[str], python: Path | None = None) -> float:
    """Runs a module with its arguments; from its start to its exit.

    By the Python that runs, or another.

    Raises:
        UserError: it has told a mistake.
        Stopped: it was stopped by a signal, which this process handed on.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [python or sys.executable, "-m", *command],
        env=turns.with_sources(os.environ),
        # Ctrl-C in a terminal comes to it from here, once.
        start_new_session=True,
    )
    with _handed_on(process):
        code = process.wait()
    seconds = time.perf_counter() - began
    if code == AGAIN_EXIT_CODE:
        raise Stopped("the same command goes on")
    if code:
        raise UserError(
            f"{command[0]} ended with code {code}: its message is above, or, with -9, "
            "memory was short; the same command goes on"
        )
    return seconds


@contextlib.contextmanager
def _handed_on(process: subprocess.Popen) -> Iterator[None]:
    """SIGTERM and Ctrl-C go to the process; outside the main thread, nothing does."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(
                number, lambda number, _: process.send_signal(number)
            )
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if process.poll() is None:
            process.kill()
