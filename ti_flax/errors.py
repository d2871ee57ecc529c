"""What a user did wrong, told in one line."""

import sys
from collections.abc import Callable

USAGE_EXIT_CODE = 2
# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on.
AGAIN_EXIT_CODE = 75


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line: what was expected, what was found, what to do.
    """


def run(main: Callable[[], None]) -> None:
    """Calls an entry point; a `UserError` ends it in one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
