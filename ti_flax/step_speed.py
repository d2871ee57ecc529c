"""`python -m ti_flax.benchmark step`: our train step, alone or beside PyTorch's.

Each side is a process of its own, so that its memory can be told apart, and they take
turns, so that what else the machine does hits both.
"""

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ti_flax import files
from ti_flax.errors import UserError
from ti_flax.step_keys import StepKeys

_log = logging.getLogger(__name__)

_GIB = 2**30
_OURS, _PYTORCH = "ti_flax.jax_side", "ti_flax.torch_side"


def measure(keys: StepKeys) -> dict[str, Any]:
    """Prints a table, writes the numbers as JSON and returns them.

    Raises:
        UserError: what to mend, in one line.
    """
    sides = {"ti_flax": (Path(sys.executable), _OURS)}
    if keys.pytorch != "no":
        sides["PyTorch"] = (keys.pytorch_python or Path(sys.executable), _PYTORCH)
    with contextlib.ExitStack() as stack:
        workers, facts = {}, {}
        # Alone: no other compiles beside it. Ours last: a missing PyTorch shows soon.
        for name, (python, module) in reversed(sides.items()):
            workers[name] = _Worker(python, module, keys)
            stack.callback(workers[name].end)
            facts[name] = workers[name].hear()
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(keys.repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.ask(True))
        for name, worker in workers.items():
            facts[name]["peak_bytes"] = worker.ask(False)
    content = {
        "settings": keys.model_dump(mode="json"),
        "date": time.strftime("%Y-%m-%d"),
        "sides": {
            name: facts[name] | _speed(facts["ti_flax"], seconds[name])
            for name in sides
        },
    }
    keys.output.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(keys.output) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content["sides"]))
    _log.info("wrote %s", keys.output)
    return content


def _speed(ours: dict[str, Any], seconds: list[float]) -> dict[str, Any]:
    """Both sides do the same work, which is counted in ours."""
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "median_seconds": median,
        "examples_a_second": ours["examples"] / median,
        "flops_a_second": ours["flops"] / median,
        "share_of_peak": ours["flops"] / median / ours["peak_flops"],
    }


def table(sides: dict[str, dict[str, Any]]) -> str:
    """The numbers as a Markdown table, a column a side."""
    rows = {
        "": lambda s: s["library"],
        "device": lambda s: s.get("device", ""),
        "dtype, attention": lambda s: f"{s['dtype']}, {s.get('attention', 'sdpa')}",
        "examples/s": lambda s: f"{s['examples_a_second']:.4g}",
        "ms a step, median [least, most]": lambda s: (
            f"{1e3 * s['median_seconds']:.4g} [{1e3 * min(s['seconds']):.4g}, "
            f"{1e3 * max(s['seconds']):.4g}]"
        ),
        "TFLOP/s, share of a matrix product's": lambda s: (
            f"{s['flops_a_second'] / 1e12:.3g}, {s['share_of_peak']:.0%}"
        ),
        "peak memory, GiB": lambda s: f"{s['peak_bytes'] / _GIB:.2f}",
        "compilation (PyTorch: first step), s": lambda s: f"{s['compile_seconds']:.1f}",
        "process start to first step, s": lambda s: f"{s['first_step_seconds']:.1f}",
        "overhead of a dispatch, ms": lambda s: (
            f"{1e3 * s['overhead_seconds']:.2f}" if "overhead_seconds" in s else ""
        ),
    }
    lines = [
        f"| {name} | " + " | ".join(cell(side) for side in sides.values()) + " |"
        for name, cell in rows.items()
    ]
    lines.insert(1, "|---" * (1 + len(sides)) + "|")
    return "\n".join(lines)


class _Worker:
    """One side, `ti_flax.step_side` in a process of its own."""

    def __init__(self, python: Path, module: str, keys: StepKeys) -> None:
        sources = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": sources}
        if keys.pytorch != "no":
            # Both share a GPU; and PyTorch's process wants JAX for its shapes alone.
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
            if module == _PYTORCH:
                environment["JAX_PLATFORMS"] = "cpu"
        command = [python, "-m", "ti_flax.step_side", module, keys.model_dump_json()]
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
        """The seconds of a step; the peak memory where there is none to come."""
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
