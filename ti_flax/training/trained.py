"""How a run ends: with what it has learned, or with why it ended before."""

import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from ti_flax.config import run_config
from ti_flax.reports import metrics_log
from ti_flax.reports.callbacks import Callbacks
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.runtime.signals import StopSignals
from ti_flax.step.state import State
from ti_flax.text.embedding import Embedding
from ti_flax.training.concept import Concept
from ti_flax.training.writer import Writer, has_learned, learned

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that has ended.

    Attributes:
        word: what was learned, as `keep` says.
        step: after how many steps its rows were so.
        folder: `output_dir`.
    """

    word: Embedding
    step: int
    folder: Path

    @property
    def token(self) -> str:
        """The word itself."""
        return self.word.token

    @property
    def rows(self) -> dict[str, Float32[np.ndarray, "K _"]]:
        """Its rows, by the name of the text encoder."""
        return self.word.rows

    @functools.cached_property
    def metrics(self) -> dict[str, Shaped[np.ndarray, "N"]]:
        """The numbers of all steps, those before it was resumed among them.

        An array for each column of metrics.jsonl (`callbacks.Step`), of a list for each
        of its numbers: `row_norm/0`. NaN where a step has none. They are read when
        first asked for; only the host that writes has them.
        """
        return metrics_log.columns(self.folder / metrics_log.METRICS_NAME)

    @functools.cached_property
    def validations(self) -> dict[str, Shaped[np.ndarray, "N"]]:
        """The numbers of all looks, likewise, of validation.jsonl."""
        return metrics_log.columns(self.folder / metrics_log.VALIDATION_NAME)


def finish(
    config: run_config.Config,
    writer: Writer,
    concept: Concept,
    signals: StopSignals,
    callbacks: Callbacks,
    state: State,
) -> list[Run]:
    """What was learned, or why the run ended before.

    Raises:
        UserError: it has diverged.
        Stopped: a signal came.
        Exception: what a callback raised.
    """
    done = concept.seat.done
    if concept.guard.diverged:
        raise UserError(concept.guard.explanation())
    saved = (
        f"{done} of {config.max_train_steps} steps are saved in {config.output_dir}; "
        "resume_from_checkpoint latest resumes"
    )
    if callbacks.failure is not None:
        callbacks.failure.add_note(saved)
        raise callbacks.failure
    if has_learned(state):
        _log.info(
            "stopped after %d of %d steps: the fixed loss has settled (stop %s)",
            done,
            config.max_train_steps,
            config.stop,
        )
    elif done < config.max_train_steps:
        raise Stopped(f"{signals.name}: {saved}")
    word, step = learned(config, state)
    if step < done:
        _log.info("kept the vectors of step %d, with the least fixed loss", step)
    _log.info("wrote %s", config.output_dir)
    writer.finish(word)
    return [Run(word, step, config.output_dir)]
