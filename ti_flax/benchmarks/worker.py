"""One side of `python -m ti_flax.benchmark step|kernels`, in a process of its own.

`python -m ti_flax.benchmarks.worker MODULE KEYS` writes lines of JSON: its facts, then,
to a line `true` on stdin, what a turn measured, and to `false` its peak memory. A
mistake is `{"error": message}`. What needs packages is imported where a missing one is
named.

A side measures what is not its first work in a turn: while it waits, a virtual machine
takes the memory that it freed, and to get that back takes longer than some steps.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

from ti_flax.runtime.errors import UserError


def answers(module: str, keys: str) -> Iterator[Any]:
    """What the side in `module` says: its facts, then an answer to each line."""
    try:
        from ti_flax.runtime import log

        log.show_log()
        side = importlib.import_module(module)
        facts, run = side.prepare(side.KEYS.model_validate_json(keys))
        yield facts
        while json.loads(sys.stdin.readline() or "false"):
            yield run()
        # A side that counts its own: a device's.
        in_use = side.peak_memory() if hasattr(side, "peak_memory") else None
        yield _process_peak() if in_use is None else in_use
    except UserError as error:
        yield {"error": str(error)}
    except ModuleNotFoundError as error:
        yield {"error": f"{sys.executable} has no {error.name}; pip install it there"}


def _process_peak() -> float:
    """Most bytes of memory that this process has held; NaN where that is unknown."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each system
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    # What libraries print must not come between the answers.
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in answers(*sys.argv[1:]):
        print(json.dumps(answer), file=ours, flush=True)


if __name__ == "__main__":
    main()
