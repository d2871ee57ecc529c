"""`python -m ti_flax.inspect FILE [--model NAME]`: what an embedding file holds."""

import sys

from ti_flax.config import command_line
from ti_flax.formats import describe
from ti_flax.runtime import errors, log


def main() -> None:
    log.show_log()
    keys = command_line.parse_keys(
        sys.argv[1:], describe.GROUPS, "inspect", describe.USAGE, "file"
    )
    print(describe.describe(**keys))


def command() -> None:
    """`ti_flax-inspect`, the installed console command."""
    errors.run(main)


if __name__ == "__main__":
    command()
