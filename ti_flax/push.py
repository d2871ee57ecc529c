"""`python -m ti_flax.push DIR`: uploads what a run left to the Hub."""

import sys

from ti_flax.config import command_line
from ti_flax.publishing import push
from ti_flax.runtime import errors, log


def main() -> None:
    log.show_log()
    keys = command_line.parse_keys(
        sys.argv[1:], push.GROUPS, "push", push.USAGE, "folder"
    )
    print(push.push(**keys))


def command() -> None:
    """`ti_flax-push`, the installed console command."""
    errors.run(main)


if __name__ == "__main__":
    command()
