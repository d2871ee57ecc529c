"""`python -m ti_flax.train --config FILE [--key value ...]`: teach a model a word."""

import sys

from ti_flax import command_line, errors, startup
from ti_flax import config as configuration


def main() -> None:
    command_line.show_log()
    config = configuration.load_config(sys.argv[1:])
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax import distributed, trainer

    with distributed.joined(config):
        trainer.train_concepts(config)


def command() -> None:
    """`ti_flax-train`, the installed console command."""
    startup.use_huge_pages()
    errors.run(main)


if __name__ == "__main__":
    command()
