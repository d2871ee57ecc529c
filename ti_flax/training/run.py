"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib
import logging

from ti_flax.config import run_config
from ti_flax.reports import trackers
from ti_flax.runtime import compilation, jax_settings, log, profile
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.runtime.signals import StopSignals
from ti_flax.step.state import Metrics, State
from ti_flax.text.embedding import Embedding
from ti_flax.training import loop
from ti_flax.training.concept import Concept, seated
from ti_flax.training.ready import prepare
from ti_flax.training.writer import Writer, has_learned, learned

_log = logging.getLogger(__name__)


@jax_settings.fixed()
def train_concepts(config: run_config.Config, progress: bool = True) -> list[Embedding]:
    """Trains what `config` describes, writes `output_dir`, returns what was learned.

    Everything a user may have got wrong is checked before weights are read. Of several
    processes, the first writes.

    Raises:
        UserError: what to mend, in one line.
        Stopped: SIGTERM or SIGINT came; the same command resumes.
    """
    phases = profile.Phases("Python and imports")
    compilation.keep_compiled(config.compilation_cache_dir)
    trackers.check(config.report_to)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        warnings = stack.enter_context(log.heard_warnings())
        writer = stack.enter_context(Writer(config))
        progress = progress and writer.writes
        ready = prepare(config, writer, progress, phases)
        steps, state, bank = ready.steps, ready.state, ready.bank
        resident = ready.resident
        concept = stack.enter_context(
            seated(
                *(config, ready.inputs, writer, resident, bank, ready.fixed_loss),
                *(steps, progress, warnings),
            )
        )
        signals.defer()
        phases.end("report")
        concept.validate_before(state)
        phases.end("validation before training")

        def take(state: State, count: int) -> tuple[State, Metrics]:
            result = ready.train_steps(state, resident.frozen, bank, count)
            phases.first_step(result, config.profile_startup)
            return result

        seats = [concept.seat if steps else None]
        state = loop.run(take, state, seats, _leave, signals.wanted)
        if concept.guard.diverged or not steps:  # nothing was left to train
            writer.export(state)
        elif steps.start < concept.seat.done and not concept.seat.ended:
            writer.save(concept.seat.done, state)
    return _finish(config, writer, concept, signals, state)


def _leave(state: State, slot: int) -> tuple[State, None]:
    return state, None


def _finish(
    config: run_config.Config,
    writer: Writer,
    concept: Concept,
    signals: StopSignals,
    state: State,
) -> list[Embedding]:
    """What was learned, or why the run ended before."""
    done = concept.seat.done
    if concept.guard.diverged:
        raise UserError(concept.guard.explanation())
    if has_learned(state):
        _log.info(
            "stopped after %d of %d steps: the fixed loss has settled (stop %s)",
            done,
            config.max_train_steps,
            config.stop,
        )
    elif done < config.max_train_steps:
        raise Stopped(
            f"{signals.name}: {done} of {config.max_train_steps} steps are saved in "
            f"{config.output_dir}; resume_from_checkpoint latest resumes"
        )
    word, step = learned(config, state)
    if step < done:
        _log.info("kept the vectors of step %d, with the least fixed loss", step)
    _log.info("wrote %s", config.output_dir)
    writer.finish(word)
    return [word]
