"""A run as one process of a job."""

from ti_flax.config.concepts import Many
from ti_flax.config.run_config import Config
from ti_flax.runtime import hosts
from ti_flax.training import many, run


def train(asked: Config | Many) -> None:
    """Meets the job's other processes, if there are any, and trains."""
    config = asked if isinstance(asked, Config) else asked.concepts[0].config
    with hosts.job(config):
        if isinstance(asked, Config):
            run.train_concepts(asked)
        else:
            many.train_many(asked)
