"""What a user did wrong, told in one line; and a run that was asked to stop."""

import sys
from collections.abc import Callable

USAGE_EXIT_CODE = 2
# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on.
AGAIN_EXIT_CODE = 75


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line: what was expected, what was found, what to do.
    """


class Stopped(SystemExit):
    """A run ended early because it was asked to, with all it needs to go on saved."""

    def __init__(self, message: str) -> None:
        super().__init__(AGAIN_EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Refused(Exception):
    """Why a file is refused: the rest of the sentence that begins with its path."""


def first_line(error: BaseException) -> str:
    """What another library says, for one line of ours; empty if it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def run(main: Callable[[], None]) -> None:
    """Calls an entry point; a `UserError` ends it in one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise
