"""One side of `python -m ti_flax.benchmark step`, in a process of its own.

`python -m ti_flax.step_side MODULE KEYS` writes lines of JSON: its facts, then, to
a line `true` on stdin, the seconds of a step, and to `false` its peak memory. A mistake
is `{"error": message}`.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

from ti_flax import command_line
from ti_flax.errors import UserError
from ti_flax.step_keys import StepKeys


def answers(module: str, keys: StepKeys) -> Iterator[Any]:
    """What the side in `module` says: its facts, then an answer to each line."""
    try:
        side = importlib.import_module(module)
        facts, run = side.prepare(keys)
        yield facts
        while json.loads(sys.stdin.readline() or "false"):
            yield run()
        in_use = side.peak_memory()
        own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield own if in_use is None else in_use
    except UserError as error:
        yield {"error": str(error)}
    except ModuleNotFoundError as error:
        yield {"error": f"{sys.executable} has no {error.name}; pip install it there"}


def main() -> None:
    module, keys = sys.argv[1:]
    command_line.show_log()
    # What libraries print must not come between the answers.
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in answers(module, StepKeys.model_validate_json(keys)):
        print(json.dumps(answer), file=ours, flush=True)


if __name__ == "__main__":
    main()
