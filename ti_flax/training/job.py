"""A run as one process of a job."""

from ti_flax.config import run_config
from ti_flax.runtime import hosts
from ti_flax.training import run


def train(config: run_config.Config) -> None:
    """Meets the job's other processes, if there are any, and trains."""
    with hosts.job(config):
        run.train_concepts(config)
