"""`python -m ti_flax.train_compile --config FILE --topology KIND:SHAPE [...]`.

Compiles a run's real programs for TPUs that nobody holds, and says whether they fit.
"""

import argparse

from ti_flax.config import run_config
from ti_flax.runtime import errors, log

_DESCRIPTION = """\
Compiles the train step, the encoding of pictures and the making of previews for TPUs
that nobody holds, and prints for each topology whether they fit, what they need and the
largest batch. It needs libtpu, pip install 'ti_flax[tpu]', and no TPU."""


def main() -> None:
    log.show_log()
    parser = argparse.ArgumentParser(
        prog="python -m ti_flax.train_compile",
        usage="%(prog)s --topology KIND:SHAPE [...] --config FILE [--key value ...]",
        description=_DESCRIPTION,
        epilog="All other keys are those of python -m ti_flax.train --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--topology",
        nargs="+",
        action="extend",
        metavar="KIND:SHAPE",
        help="TPUs to compile for, such as v5e:2x4 (8 chips), v6e:1x1, v4:2x2x1",
    )
    given, rest = parser.parse_known_args()
    if not given.topology:
        raise errors.UserError(
            "topology: expected at least one, found none; as in --topology v5e:2x4"
        )
    config = run_config.load_config(rest)
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.aot import topologies

    topologies.prepare()
    from ti_flax.aot import report

    for topology in given.topology:
        for line in report.lines(config, topology):
            print(line, flush=True)


if __name__ == "__main__":
    errors.run(main)
