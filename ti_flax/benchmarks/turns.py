"""ti_flax and PyTorch in separate processes, alternating: noise hits both alike.

So their memory can be told apart, and what else the machine does hits both.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.benchmarks.keys import MeasuringKeys
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)

OURS, PYTORCH = "ti_flax", "PyTorch"


class Measured(NamedTuple):
    """What each side said of itself, with `peak_bytes`, and in each of its turns."""

    facts: dict[str, dict[str, Any]]
    answers: dict[str, list[Any]]


def measure(keys: MeasuringKeys, ours: str, pytorch: str) -> Measured:
    """Runs the modules `ours` and, where the keys want it, `pytorch`.

    Raises:
        UserError: what to mend, in one line.
    """
    sides = {OURS: (Path(sys.executable), ours)}
    if keys.pytorch != "no":
        sides[PYTORCH] = (keys.pytorch_python or Path(sys.executable), pytorch)
    # Ours is prepared last: a missing PyTorch shows soon.
    starts = [*reversed(sides)]
    facts, answers = {}, {}
    for names in [starts] if keys.together else [[name] for name in starts]:
        with contextlib.ExitStack() as stack:
            workers = {}
            for name in names:  # alone: no other compiles beside it
                workers[name] = Worker(name, *sides[name], keys)
                stack.callback(workers[name].end)
                facts[name] = workers[name].hear()
            taken = [
                {name: workers[name].ask(True) for name in sides if name in workers}
                for _ in range(keys.repeats)
            ]
            for name, worker in workers.items():
                answers[name] = [turn[name] for turn in taken]
                facts[name]["peak_bytes"] = worker.ask(False)
    return Measured(
        {name: facts[name] for name in sides}, {name: answers[name] for name in sides}
    )


def write(keys: MeasuringKeys, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds settings and date, and writes all as JSON to `keys.output`."""
    content = {
        "settings": keys.model_dump(mode="json"),
        "date": time.strftime("%Y-%m-%d"),
        **measured,
    }
    atomic.write_json(keys.output, content, indent=1)
    _log.info("wrote %s", keys.output)
    return content


def with_sources(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment where Python finds these sources first, then what it found."""
    paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """To three digits, without an exponent."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


class Worker:
    """One side, `ti_flax.benchmarks.worker` in a process of its own."""

    def __init__(
        self, name: str, python: Path, module: str, keys: MeasuringKeys
    ) -> None:
        environment = with_sources(os.environ)
        if keys.pytorch != "no":
            # Both share a GPU; and PyTorch's process wants JAX for its shapes alone.
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
            if name == PYTORCH:
                environment["JAX_PLATFORMS"] = "cpu"
        command = [
            python,
            "-m",
            "ti_flax.benchmarks.worker",
            module,
            keys.model_dump_json(),
        ]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, env=environment
            )
        except OSError as error:
            raise UserError(
                f"pytorch_python: {python} does not run ({error.strerror}); name the "
                "Python of an environment that has PyTorch"
            ) from error

    def ask(self, go_on: bool) -> Any:
        """What it measured in a turn; the peak memory where there is none to come."""
        print(json.dumps(go_on), file=self._process.stdin, flush=True)
        return self.hear()

    def hear(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"a side of the benchmark ended with code {self._process.wait()}: "
                "its message is above, or, with -9, memory was short"
            )
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"])
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
