"""What a user did wrong, told in one line; and a run that was asked to stop."""

import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Sequence

USAGE_EXIT_CODE = 2
# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command resumes.
AGAIN_EXIT_CODE = 75
# As a shell gives it for a process that SIGPIPE ended.
UNREAD_EXIT_CODE = 141
# Characters of another library's text: four lines of a terminal.
_LONGEST_QUOTE = 320
_LONGEST_NAME = 80
# Of a value out of a stranger's file: letters, entries and levels that are shown.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line: what was expected, what was found, what to do.
    """


class UserErrors(UserError):
    """Several mistakes, a line each; what had none was done."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


def raise_all(errors: Sequence[UserError]) -> None:
    """Raises the one mistake, or all of several; of none, nothing."""
    if len(errors) > 1:
        raise UserErrors(errors)
    if errors:
        raise errors[0]


class Stopped(BaseException):
    """A run ended early because it was asked to, with all it needs to resume saved.

    Raised by a signal wherever the program is, so that no `except Exception` may catch
    it; not a SystemExit, which would end more than the call in a notebook.
    """


def one_line(told: BaseException | str) -> str:
    """What another library says, for one line of ours: its text, or its type if none.

    White space becomes single spaces, what a terminal would act on is escaped, and
    after `_LONGEST_QUOTE` characters it ends in "...".
    """
    text = " ".join(str(told).split()) or type(told).__name__
    text = _escaped(text)
    if len(text) > _LONGEST_QUOTE:
        text = text[: _LONGEST_QUOTE - 3] + "..."
    return text


def _escaped(text: str) -> str:
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(value: object) -> str:
    """A value out of a stranger's file, as Python writes it: escaped and cut."""
    return one_line(_SHORT.repr(value))


def listed(names: Iterable[object], most: int = 3) -> str:
    """Names out of a stranger's file, the first of them, escaped and cut."""
    names = list(names)
    told = [one_line(str(name))[:_LONGEST_NAME] for name in names[:most]]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join(told + more)


def run(main: Callable[[], None]) -> None:
    """Calls an entry point; a `UserError` ends it in one line and exit code 2.

    Where `head` or another reader of what it prints has left, it ends in silence, as by
    SIGPIPE.
    """
    try:
        try:
            _told(main)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The pipe may be another's: only a byte more tells.
        try:
            print(flush=True)
        except BrokenPipeError:
            # The interpreter flushes once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(UNREAD_EXIT_CODE)
        raise


def _told(main: Callable[[], None]) -> None:
    try:
        main()
    except UserError as error:
        # Most of it was escaped where it was read; paths and keys of a user's are not.
        for each in error.errors if isinstance(error, UserErrors) else [error]:
            print(f"error: {_escaped(str(each))}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        sys.exit(AGAIN_EXIT_CODE)
