"""`python -m ti_flax.convert IN --to FORMAT --output OUT`: for another program."""

import sys

from ti_flax.config import command_line
from ti_flax.formats import convert
from ti_flax.runtime import errors, log


def main() -> None:
    log.show_log()
    convert.convert(
        **command_line.parse_keys(
            sys.argv[1:], convert.GROUPS, "convert", convert.USAGE, "source"
        )
    )


def command() -> None:
    """`ti_flax-convert`, the installed console command."""
    errors.run(main)


if __name__ == "__main__":
    command()
