"""`python -m ti_flax.benchmark quality|step|kernels [--key value ...]`."""

import importlib
import sys

from ti_flax.benchmarks.keys import KERNEL_GROUPS, STEP_GROUPS, KernelKeys, StepKeys
from ti_flax.benchmarks.quality import keys
from ti_flax.config import command_line, validation
from ti_flax.runtime import errors, log, process

# What can be measured: its keys by title, all of them, and the module that measures.
_SUBCOMMANDS = {
    "quality": (
        keys.GROUPS,
        keys.QualityKeys,
        "ti_flax.benchmarks.quality.measure",
    ),
    "step": (STEP_GROUPS, StepKeys, "ti_flax.benchmarks.step"),
    "kernels": (KERNEL_GROUPS, KernelKeys, "ti_flax.benchmarks.kernels"),
}


def main() -> None:
    log.show_log()
    name, *argv = sys.argv[1:] or [""]
    if name not in _SUBCOMMANDS:
        raise errors.UserError(
            f"expected one of {', '.join(_SUBCOMMANDS)}, found {name!r}; as in "
            "python -m ti_flax.benchmark quality"
        )
    groups, all_keys, module = _SUBCOMMANDS[name]
    usage = "[--key value ...]"
    given = command_line.parse_keys(argv, groups, f"benchmark {name}", usage)
    keys = validation.validate(all_keys, given, "with --key value")
    # Imported late: --help and a mistyped key must not wait for JAX.
    importlib.import_module(module).measure(keys)


if __name__ == "__main__":
    process.use_huge_pages()
    errors.run(main)
