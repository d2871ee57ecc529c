"""Compiles a run's real programs for TPUs that nobody holds; do they fit?"""

import argparse
from collections.abc import Sequence

from ti_flax.config import concepts
from ti_flax.runtime import arguments, errors

_DESCRIPTION = """\
Compiles the train step, the encoding of pictures and the making of previews for
TPUs that nobody holds, and prints for each topology whether they fit, what they
need, the largest batch and the most slots; or whether the step of --slots N or
of --concepts LIST fits. It needs libtpu, pip install 'ti_flax[tpu]', and no
TPU."""

Asked = concepts.Config | concepts.Many


def read(argv: Sequence[str]) -> tuple[tuple[Asked, int | None, list[str]], dict]:
    """The arguments of `print_reports`."""
    parser = arguments.Parser(
        prog="python -m ti_flax.train_compile",
        usage="%(prog)s --topology KIND:SHAPE [...]\n  --config FILE [--key value ...]",
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
    given, rest = parser.parse_known_args(argv)
    if not given.topology:
        raise errors.UserError(
            "topology: expected at least one, found none; as in --topology v5e:2x4"
        )
    asked, keys = concepts.load_with_keys(rest)
    return (asked, keys.slots, given.topology), {}


def print_reports(asked: Asked, slots: int | None, wanted: Sequence[str]) -> None:
    """Prints a report of the programs of a run for each topology."""
    # Imported late: --help and a mistyped key must not wait for JAX.
    from ti_flax.aot import topologies

    topologies.prepare()
    from ti_flax.aot import report

    for topology in wanted:
        for line in report.lines(asked, slots, topology):
            print(line, flush=True)
