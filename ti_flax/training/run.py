"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib

from ti_flax.config import run_config
from ti_flax.reports import trackers
from ti_flax.reports.callbacks import Callbacks, OnLook, OnStep
from ti_flax.runtime import compilation, jax_settings, log, profile
from ti_flax.runtime.signals import StopSignals
from ti_flax.step.state import Metrics, State
from ti_flax.training import loop, trained
from ti_flax.training.concept import seated
from ti_flax.training.ready import prepare
from ti_flax.training.writer import Writer


@jax_settings.fixed()
def train_concepts(
    config: run_config.Config,
    progress: bool = True,
    on_step: OnStep | None = None,
    on_look: OnLook | None = None,
) -> list[trained.Run]:
    """Trains what `config` describes, writes `output_dir`, returns what was learned.

    Everything a user may have got wrong is checked before weights are read. Of several
    processes, the first writes. It also calls `on_step` with the numbers of each step
    and `on_look` with each validation, neither of which can change a number; the run
    ends where one raises.

    Raises:
        UserError: what to mend, in one line.
        Stopped: SIGTERM or SIGINT came; the same command resumes.
        Exception: what a callback raised, once the run is saved as for a signal.
    """
    callbacks = Callbacks(on_step, on_look)
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
                callbacks=callbacks,
            )
        )
        signals.defer()
        phases.end("report")
        concept.validate_before(state)
        phases.end("validation before training")

        def stop() -> bool:
            return signals.wanted(callbacks.failure is not None)

        def take(state: State, count: int) -> tuple[State, Metrics]:
            result = ready.train_steps(state, resident.frozen, bank, count)
            phases.first_step(result, config.profile_startup)
            return result

        seats = [concept.seat if steps else None]
        state = loop.run(take, state, seats, loop.nobody_waits, stop)
        if concept.guard.diverged or not steps:  # nothing was left to train
            writer.export(state)
        elif steps.start < concept.seat.done and not concept.seat.ended:
            writer.save(concept.seat.done, state)
    return trained.finish(config, writer, concept, signals, callbacks, state)
