"""A run as one process of a job."""

from ti_flax.config.concepts import Many
from ti_flax.config.run_config import Config
from ti_flax.runtime import hosts
from ti_flax.runtime.errors import UserError
from ti_flax.training import many, run


def train(asked: Config | Many) -> None:
    """Meets the job's other processes, if there are any, and trains.

    Processes that share a list of concepts do not meet: each trains a part.

    Raises:
        UserError: what to mend, in one line.
        Stopped: a signal came; the same command goes on.
    """
    if isinstance(asked, Many):
        _check_process(asked)
        many.train_many(asked)
        return
    with hosts.job(asked):
        run.train_concepts(asked)


def _check_process(asked: Many) -> None:
    """Raises `UserError` where other processes would train the same concepts."""
    if not hosts.are_several(asked.concepts[0].config):
        return
    if hosts.has_tpu():
        raise UserError(
            "concepts: expected a TPU slice of one host, found one of several, which "
            "only work together; take as many slices of one host, and give each "
            "--part I/N"
        )
    if asked.part.count == 1:
        raise UserError(
            "concepts: expected one process, found several, which would train the same "
            "concepts; give each of them another --part I/N, with I from 0 to N - 1"
        )
