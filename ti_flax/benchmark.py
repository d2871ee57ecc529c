"""`python -m ti_flax.benchmark quality|step [--key value ...]`: how well, how fast."""

import sys

from ti_flax import command_line, config, errors, startup, step_keys
from ti_flax.quickstart import quality_keys

_USAGE = "[--key value ...]"


def _quality(argv: list[str]) -> None:
    given = command_line.parse_keys(
        argv, quality_keys.GROUPS, "benchmark quality", _USAGE
    )
    keys = config.validate(quality_keys.QualityKeys, given, "with --key value")
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.quickstart import quality

    quality.measure(keys)


def _step(argv: list[str]) -> None:
    given = command_line.parse_keys(argv, step_keys.GROUPS, "benchmark step", _USAGE)
    keys = config.validate(step_keys.StepKeys, given, "with --key value")
    from ti_flax import step_speed

    step_speed.measure(keys)


# What can be measured.
_SUBCOMMANDS = {"quality": _quality, "step": _step}


def main() -> None:
    command_line.show_log()
    name, *argv = sys.argv[1:] or [""]
    if name not in _SUBCOMMANDS:
        raise errors.UserError(
            f"expected one of {', '.join(_SUBCOMMANDS)}, found {name!r}; as in "
            "python -m ti_flax.benchmark quality"
        )
    _SUBCOMMANDS[name](argv)


if __name__ == "__main__":
    startup.use_huge_pages()
    errors.run(main)
