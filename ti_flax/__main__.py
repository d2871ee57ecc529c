"""`ti-flax COMMAND`, or `python -m ti_flax COMMAND`: every command of the package.

`ti-flax train ...` is `python -m ti_flax.train ...`.
"""

import runpy
import sys

from ti_flax import __version__
from ti_flax.runtime import arguments, completion, errors

# Name -> what it does; the module has _ for -.
COMMANDS = {
    "quickstart": "teach the small model of the package a word, in minutes on a CPU",
    "data": "say what is wrong with a folder of pictures, before training",
    "train": "teach a model a word from its pictures",
    "generate": "make pictures with learned words",
    "inspect": "say what an embedding file holds",
    "convert": "write an embedding for another program",
    "verify": "compare an embedding with what PyTorch makes of it",
    "push": "upload what a run left to the Hub",
    "compile": "say whether a run fits on TPUs that nobody holds",
    "benchmark": "measure quality, concepts, steps or kernels",
    "schema": "print the schema of configuration files, for editors",
    "random-model": "write a model of random weights, to try the others",
}
_MODULES = {"compile": "train_compile"}


def module_of(command: str) -> str:
    """The module that is run for a command."""
    return f"ti_flax.{_MODULES.get(command, command.replace('-', '_'))}"


def main() -> None:
    match sys.argv[1:]:
        case [] | ["--help" | "-h" | "help"]:
            print(_help())
        case ["--version"]:
            print(f"ti_flax {__version__}")
        case ["--completion", shell]:
            modules = {command: module_of(command) for command in COMMANDS}
            print(completion.script(shell, modules))
        case [command, *rest]:
            sys.argv[1:] = rest
            runpy.run_module(_chosen(command), run_name="__main__", alter_sys=True)


def _help() -> str:
    lines = [f"  {name:13} {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ti-flax COMMAND [--key value ...]",
            "",
            *lines,
            "",
            "Each says more with --help. --version; --completion bash or zsh prints a",
            'script for the shell: eval "$(ti-flax --completion bash)".',
        ]
    )


def _chosen(command: str) -> str:
    modules = {module_of(name) for name in COMMANDS}
    for name in (command, f"ti_flax.{command}"):
        if name in COMMANDS:
            return module_of(name)
        if name in modules:
            return name
    hint = arguments.nearest(command, COMMANDS, "ti-flax --help lists them")
    raise errors.UserError(f"expected a command, found {command!r}; {hint}")


def command() -> None:
    """What the console script calls."""
    errors.run(main)


if __name__ == "__main__":
    command()
