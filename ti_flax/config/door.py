"""What a command does: it reads its keys, and calls a function with them."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ti_flax.config import command_line, validation
from ti_flax.config.fields import Settings
from ti_flax.runtime import errors, log, process

Read = Callable[[Sequence[str]], tuple[tuple[Any, ...], Mapping[str, Any]]]


class Door:
    """A command: `main` raises what a user did wrong, a call says it in one line.

    `read` gives the target's arguments for those of the command line. The target,
    "module:function", is imported after them: --help and a mistyped key must not wait
    for JAX. A text that it returns is printed. What `computes` gets large pages.
    """

    def __init__(self, read: Read, target: str, computes: bool = True) -> None:
        self._read, self._target, self._computes = read, target, computes

    def main(self) -> None:
        log.show_log()
        positional, keys = self._read(sys.argv[1:])
        module, function = self._target.split(":")
        told = getattr(importlib.import_module(module), function)(*positional, **keys)
        if isinstance(told, str):
            print(told)

    def __call__(self) -> None:
        if self._computes:
            process.use_huge_pages()
        errors.run(self.main)


def door(
    name: str,
    settings: type[Settings],
    groups: Mapping[str, type[BaseModel]],
    target: str,
    usage: str = "[--key value ...]",
    positional: str = "",
    computes: bool = False,
) -> Door:
    """The command `python -m ti_flax.<name>`, which calls `target(**keys)`.

    Args:
      name: the module, and what stands behind it if it has several commands.
      settings: all keys, which are checked before the target is imported.
      groups: title in `--help` -> the keys that stand under it.
      target: "module:function".
      usage: its arguments, as the first line of `--help` shows them.
      positional: the keys that are given without their names.
      computes: whether it computes so long that large pages pay.
    """

    def read(argv: Sequence[str]) -> tuple[tuple[()], Mapping[str, Any]]:
        given = command_line.parse_keys(argv, groups, name, usage, positional)
        keys = validation.validate(settings, given, "with --key value")
        # Not only what was given: one key may be another's name.
        return (), {key: getattr(keys, key) for key in keys.model_fields_set}

    return Door(read, target, computes)
