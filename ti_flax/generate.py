"""`python -m ti_flax.generate --model ... --prompt ...`: pictures of learned words."""

import sys

from ti_flax.config import command_line, generate_keys, validation
from ti_flax.runtime import errors, log, process

_USAGE = "--model NAME --embedding FILE ... --prompt TEXT ... --output DIR"


def main() -> None:
    log.show_log()
    keys = command_line.parse_keys(
        sys.argv[1:], generate_keys.GROUPS, "generate", _USAGE
    )
    if keys.get("output") is None:
        raise errors.UserError("required but missing: output; set it with --output DIR")
    checked = validation.validate(generate_keys.GenerateKeys, keys, "with --key value")
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.generation import generate

    generate.generate(checked, progress=True)


def command() -> None:
    """`ti_flax-generate`, the installed console command."""
    process.use_huge_pages()
    errors.run(main)


if __name__ == "__main__":
    command()
