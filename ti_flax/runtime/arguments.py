"""Arguments of a command; a mistake among them is one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ti_flax.runtime.errors import UserError

_FLAG = re.compile(r"--[^\s=]+(=.*)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Reads all arguments, those of the process if none are given.

        Raises:
            UserError: an unknown flag or argument, a missing value or argument.
            SystemExit: `--help`, with code 0.
        """
        argv = sys.argv[1:] if argv is None else argv
        # Before argparse misses what only a misspelt flag keeps it from seeing.
        for argument in argv:
            if argument == "--":
                break
            flag = argument.partition("=")[0]
            if _FLAG.fullmatch(argument) and flag not in self._option_string_actions:
                raise UserError(
                    f"unknown flag {argument!r}; {nearest(flag, self._flags())}"
                )
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(self._unexpected(unknown[0]))
        return namespace

    def _flags(self) -> list[str]:
        """Every flag but those that turn another one off."""
        options = self._option_string_actions.items()
        return [flag for flag, action in options if flag == f"--{action.dest}"]

    def _unexpected(self, argument: str) -> str:
        flags = self._flags()
        if argument.startswith("-"):
            return f"unknown flag {argument!r}; {nearest(argument, flags)}"
        file_hint = "; a configuration file is given as --config FILE"
        more = file_hint if "--config" in flags else ""
        return f"expected --key value, found {argument!r}{more}"


def nearest(
    name: str, known: Iterable[str], otherwise: str = "--help lists all keys"
) -> str:
    """The question that leads from a misspelt name to the right one, or `otherwise`."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {matches[0]}?" if matches else otherwise
