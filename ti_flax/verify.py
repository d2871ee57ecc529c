"""`python -m ti_flax.verify DIR_OR_FILE --model NAME`: does PyTorch get what we have?

Loads an embedding in diffusers' `StableDiffusionPipeline` as its users do, and
compares. Needs the extra `torch`; training and generating never do.
"""

import sys

from ti_flax.config import command_line
from ti_flax.generation import verify
from ti_flax.runtime import errors, log


def main() -> None:
    log.show_log()
    keys = command_line.parse_keys(
        sys.argv[1:], verify.GROUPS, "verify", verify.USAGE, "source"
    )
    checks = verify.verify(**keys)
    for check in checks:
        print(f"{'agrees' if check.agrees else 'differs'}: {check.text}")
    if not all(check.agrees for check in checks):
        sys.exit(1)


def command() -> None:
    """`ti_flax-verify`, the installed console command."""
    errors.run(main)


if __name__ == "__main__":
    command()
