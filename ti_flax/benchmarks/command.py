"""Which benchmark is asked for."""

import importlib
from collections.abc import Sequence

from ti_flax.benchmarks.concepts import keys as concepts_keys
from ti_flax.benchmarks.keys import KERNEL_GROUPS, STEP_GROUPS, KernelKeys, StepKeys
from ti_flax.benchmarks.quality.keys import GROUPS, QualityKeys
from ti_flax.config import command_line, validation
from ti_flax.config.fields import Settings
from ti_flax.runtime import errors

# What can be measured: all keys, these by title, and the module that measures.
_SUBCOMMANDS = {
    "quality": (QualityKeys, GROUPS, "ti_flax.benchmarks.quality.measure"),
    "concepts": (
        concepts_keys.ConceptsKeys,
        concepts_keys.GROUPS,
        "ti_flax.benchmarks.concepts.measure",
    ),
    "step": (StepKeys, STEP_GROUPS, "ti_flax.benchmarks.step"),
    "kernels": (KernelKeys, KERNEL_GROUPS, "ti_flax.benchmarks.kernels"),
}


def read(argv: Sequence[str]) -> tuple[tuple[str, Settings], dict]:
    """The arguments of `measure`."""
    name, *rest = argv or [""]
    if name in ("-h", "--help"):
        print(
            f"usage: python -m ti_flax.benchmark {'|'.join(_SUBCOMMANDS)}\n"
            "  [--key value ...]\n\nEach says more with --help."
        )
        raise SystemExit(0)
    if name not in _SUBCOMMANDS:
        raise errors.UserError(
            f"expected one of {', '.join(_SUBCOMMANDS)}, found {name!r}; as in "
            "python -m ti_flax.benchmark quality"
        )
    settings, groups, module = _SUBCOMMANDS[name]
    usage = "[--key value ...]"
    given = command_line.parse_keys(rest, groups, f"benchmark {name}", usage)
    return (module, validation.validate(settings, given, "with --key value")), {}


def measure(module: str, keys: Settings) -> None:
    importlib.import_module(module).measure(keys)
