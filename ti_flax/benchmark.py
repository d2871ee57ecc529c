"""`python -m ti_flax.benchmark quality|step|kernels [--key value ...]`."""

import importlib
import sys

from ti_flax import command_line, config, errors, startup, step_keys
from ti_flax.quickstart import quality_keys

# What can be measured: its keys by title, all of them, and the module that measures.
_SUBCOMMANDS = {
    "quality": (
        quality_keys.GROUPS,
        quality_keys.QualityKeys,
        "ti_flax.quickstart.quality",
    ),
    "step": (step_keys.STEP_GROUPS, step_keys.StepKeys, "ti_flax.step_speed"),
    "kernels": (step_keys.KERNEL_GROUPS, step_keys.KernelKeys, "ti_flax.kernel_speed"),
}


def main() -> None:
    command_line.show_log()
    name, *argv = sys.argv[1:] or [""]
    if name not in _SUBCOMMANDS:
        raise errors.UserError(
            f"expected one of {', '.join(_SUBCOMMANDS)}, found {name!r}; as in "
            "python -m ti_flax.benchmark quality"
        )
    groups, all_keys, module = _SUBCOMMANDS[name]
    usage = "[--key value ...]"
    given = command_line.parse_keys(argv, groups, f"benchmark {name}", usage)
    keys = config.validate(all_keys, given, "with --key value")
    # Imported late: --help and a mistyped key must not wait for JAX.
    importlib.import_module(module).measure(keys)


if __name__ == "__main__":
    startup.use_huge_pages()
    errors.run(main)
