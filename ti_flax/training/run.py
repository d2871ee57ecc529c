"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib
import functools
import logging

from ti_flax.config import run_config
from ti_flax.reports import report, trackers
from ti_flax.runtime import compilation, jax_settings, log, profile
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.runtime.signals import StopSignals
from ti_flax.step.state import Metrics, State
from ti_flax.text.embedding import Embedding
from ti_flax.training import divergence, loop, validation
from ti_flax.training.ready import prepare
from ti_flax.training.writer import Writer, has_learned, learned

_log = logging.getLogger(__name__)

_SLOT = 0  # a run has one concept


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
        steps, state = ready.steps, ready.state
        writer.open()
        pictures = ready.inputs.pictures.images
        run_report = stack.enter_context(
            report.open_report(config, _SLOT, steps, progress, pictures, warnings)
        )
        validate = validation.compile_validation(
            config, ready.inputs, ready.resident, ready.recipe, run_report, _SLOT
        )
        guard = divergence.DivergenceGuard(
            _SLOT, steps.start, [*ready.resident.high_norms.values()]
        )
        signals.defer()
        phases.end("report")
        if steps.start == 0:
            validate(0, state)
            phases.end("validation before training")

        def take(state: State, count: int) -> tuple[State, Metrics]:
            resident = ready.resident
            result = ready.train_steps(state, resident.frozen, resident.bank, count)
            phases.first_step(result, config.profile_startup)
            return result

        # The checkpoint last: of a step that is saved, nothing is left to do.
        events = [
            loop.Event(config.validation_steps, validate),
            loop.Event(config.checkpointing_steps, writer.save),
        ]
        examples = config.examples_per_step
        stop = functools.partial(_should_stop, guard, signals)
        done, state = loop.run(
            take, state, steps, examples, events, run_report, guard.add, stop
        )
        if guard.diverged or steps.start == steps.stop:  # nothing was left to train
            writer.export(state)
        elif steps.start < done < steps.stop and not has_learned(state):
            writer.save(done, state)
    return _finish(config, writer, guard, signals, done, state)


def _should_stop(guard: divergence.DivergenceGuard, signals: StopSignals) -> bool:
    return guard.diverged or signals.wanted()


def _finish(
    config: run_config.Config,
    writer: Writer,
    guard: divergence.DivergenceGuard,
    signals: StopSignals,
    done: int,
    state: State,
) -> list[Embedding]:
    """What was learned, or why the run ended before."""
    if guard.diverged:
        raise UserError(guard.explanation())
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
