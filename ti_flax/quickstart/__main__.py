"""`python -m ti_flax.quickstart [--key value ...]`: a word, before and after."""

import sys

from ti_flax.quickstart import settings
from ti_flax.runtime import errors, log, process


def main() -> None:
    log.show_log()
    config = settings.load_config(sys.argv[1:])
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.quickstart import before_after
    from ti_flax.training import run

    run.train_concepts(config)
    before_after.write(config)


if __name__ == "__main__":
    process.use_huge_pages()
    errors.run(main)
