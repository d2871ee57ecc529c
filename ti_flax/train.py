"""`python -m ti_flax.train --config FILE [--key value ...]`: teach a model a word."""

import sys

from ti_flax.config import run_config
from ti_flax.runtime import errors, log, process


def main() -> None:
    log.show_log()
    config = run_config.load_config(sys.argv[1:])
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.runtime import hosts
    from ti_flax.training import run

    with hosts.job(config):
        run.train_concepts(config)


def command() -> None:
    """`ti_flax-train`, the installed console command."""
    process.use_huge_pages()
    errors.run(main)


if __name__ == "__main__":
    command()
