"""`python -m ti_flax.quickstart [--key value ...]`: a word, before and after."""

import sys

from ti_flax import command_line, errors, startup
from ti_flax.quickstart import settings


def main() -> None:
    command_line.show_log()
    config = settings.load_config(sys.argv[1:])
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax import trainer
    from ti_flax.quickstart import before_after

    trainer.train_concepts(config)
    before_after.write(config)


if __name__ == "__main__":
    startup.use_huge_pages()
    errors.run(main)
