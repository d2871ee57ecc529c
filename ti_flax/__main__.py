"""`python -m ti_flax`: the commands, with a line each."""

import sys

from ti_flax.runtime import arguments, errors

COMMANDS = {
    "quickstart": "teach the small model of the package a word, in minutes on a CPU",
    "data": "say what is wrong with a folder of pictures, before training",
    "train": "teach a model a word from its pictures",
    "generate": "make pictures with learned words",
    "inspect": "say what an embedding file holds",
    "convert": "write an embedding for another program",
    "verify": "compare an embedding with what PyTorch makes of it",
    "push": "upload what a run left to the Hub",
    "train_compile": "say whether a run fits on TPUs that nobody holds",
    "benchmark": "measure quality, steps or kernels",
    "random_model": "write a model of random weights, to try the others",
}


def main() -> None:
    if sys.argv[1:2] not in ([], ["--help"], ["-h"]):
        name = sys.argv[1]
        hint = arguments.nearest(name, COMMANDS)
        if name in COMMANDS:
            hint = f"that command is python -m ti_flax.{name}"
        raise errors.UserError(f"expected no argument, found {name!r}; {hint}")
    width = max(map(len, COMMANDS))
    for name, line in COMMANDS.items():
        print(f"python -m ti_flax.{name:{width}}  {line}")
    print("\nEach says more with --help.")


if __name__ == "__main__":
    errors.run(main)
