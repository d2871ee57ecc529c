"""Runs of the package's commands in one process in which JAX cannot be imported."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

# What takes seconds to import, and what only the comparison with PyTorch needs.
REFUSED = ("accelerate", "diffusers", "flax", "jax", "torch", "transformers")


class Ran(NamedTuple):
    """What a command left: `asked` are the refused modules that it wanted."""

    code: int
    stdout: str
    stderr: str
    asked: list[str]


def run(calls: Sequence[Sequence[str]]) -> list[Ran]:
    """Runs `python -m ti_flax.<module> <arguments>` for each (module, *arguments).

    All share one interpreter, which turns warnings into errors.
    """
    # With the large pages that it asks for a command does not start itself again.
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "COLUMNS": "80",
    }
    ran = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    return [Ran(*left) for left in json.loads(ran.stdout)]


class _Refuse:
    """Stands before Python's finders; keeps the names it refused."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in REFUSED:
            self.asked.append(name)
            raise ImportError(f"{name} is refused here")


def _run(refuse: _Refuse, module: str, *arguments: str) -> Ran:
    name = f"ti_flax.{module}"
    # As in a new process, the module is not there before it is run.
    sys.modules.pop(name, None)
    sys.argv[1:] = arguments
    refuse.asked = []
    code = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
    return Ran(code, stdout.getvalue(), stderr.getvalue(), refuse.asked)


if __name__ == "__main__":
    refuse = _Refuse()
    assert not {*REFUSED} & {*sys.modules}
    sys.meta_path.insert(0, refuse)
    print(json.dumps([_run(refuse, *call) for call in json.load(sys.stdin)]))
