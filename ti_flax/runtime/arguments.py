"""Arguments of a command; a mistake among them is one line."""

import argparse
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
                raise UserError(f"unknown flag {argument!r}; {self._nearest(flag)}")
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(self._unexpected(unknown[0]))
        return namespace

    def _nearest(self, flag: str) -> str:
        """Where it leads: first to what --help shows, never to what turns one off."""
        flags: dict[bool, list[str]] = {False: [], True: []}
        for name, action in self._option_string_actions.items():
            if name == f"--{action.dest}":
                flags[action.help is argparse.SUPPRESS].append(name)
        return nearest(flag, flags[False], nearest(flag, flags[True]))

    def _unexpected(self, argument: str) -> str:
        if argument.startswith("-"):
            return f"unknown flag {argument!r}; {self._nearest(argument)}"
        file_hint = "; a configuration file is given as --config FILE"
        more = file_hint if "--config" in self._option_string_actions else ""
        return f"expected --key value, found {argument!r}{more}"


# More names than these are no answer.
_MOST_NAMES = 3


def nearest(
    name: str, known: Iterable[str], otherwise: str = "--help lists all keys"
) -> str:
    """The question that leads from a misspelt name to the right one, or `otherwise`.

    Right are those that the fewest slips of a finger make of it, if these are at most
    one for every four letters; else those that begin or end with it in whole words, as
    train_data_dir does with data_dir. Letter case and the kind of dash do not count.
    """
    typed = _plain(name)
    slips = {one: _distance(typed, _plain(one)) for one in known}
    least = min(slips.values(), default=len(typed))
    found = [one for one, number in slips.items() if number == least]
    if least > _most_slips(typed):
        found = [one for one in slips if _is_an_end(typed, _plain(one))]
    if not 0 < len(found) <= _MOST_NAMES:
        return otherwise
    return f"did you mean {' or '.join(found)}?"


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").casefold()


def _most_slips(name: str) -> int:
    # Of two letters, one slip makes any other word of two letters.
    return max(len(name) // 4, 1) if len(name) > 2 else 0


def _is_an_end(part: str, name: str) -> bool:
    return bool(part) and (name.startswith(f"{part}_") or name.endswith(f"_{part}"))


def _distance(one: str, other: str) -> int:
    """How many letters to leave out, put in, change or swap with the next one.

    Optimal string alignment: no letter is touched twice.
    """
    before, last = [], [*range(len(other) + 1)]
    for i, letter in enumerate(one):
        row = [i + 1]
        for j, goal in enumerate(other):
            cost = min(last[j] + (letter != goal), last[j + 1] + 1, row[j] + 1)
            if i and j and letter == other[j - 1] and one[i - 1] == goal:
                cost = min(cost, before[j - 1] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
