"""A run from configuration to files; `python -m ti_flax.train` is its command line."""

import contextlib
import functools
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.checkpoints import identity, store
from ti_flax.checkpoints.output_dir import RunFolder
from ti_flax.config import run_config
from ti_flax.formats import find
from ti_flax.publishing import provenance, results
from ti_flax.reports import report, trackers
from ti_flax.runtime import atomic, compilation, log, profile, sharding
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.runtime.signals import StopSignals
from ti_flax.step import dispatch
from ti_flax.step.state import Metrics, State, init_state
from ti_flax.training import divergence, loop, validation
from ti_flax.training.inputs import Inputs, read_inputs
from ti_flax.training.recipe import abstract_arguments, make_recipe
from ti_flax.training.resident import load

_log = logging.getLogger(__name__)


def train_concepts(
    config: run_config.Config, progress: bool = True
) -> list[find.Embedding]:
    """Trains what `config` describes, writes `output_dir`, returns what was learned.

    Everything a user may have got wrong is checked before weights are read. Of several
    processes, the first writes.

    Raises:
        UserError: what to mend, in one line.
        Stopped: SIGTERM or SIGINT came; the run goes on from its last checkpoint.
    """
    phases = profile.Phases("Python and imports")
    compilation.keep_compiled(config.compilation_cache_dir)
    trackers.check(config.report_to)
    if jax.process_index() == 0:
        results.check(config)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        warnings = stack.enter_context(log.heard_warnings())
        folder, found = None, None
        if jax.process_index() == 0:
            folder = stack.enter_context(RunFolder(config))
            found = folder.found
        inputs = read_inputs(config)
        phases.end("checks")
        if folder is not None:
            fingerprints = inputs.fingerprints()
        if found is not None:
            identity.check_fingerprints(found, fingerprints)
        _log.info("reading %s", inputs.model.folder)
        recipe = make_recipe(config, inputs.model, inputs.schedule, inputs.mesh)
        train_steps = dispatch.compile_train_steps(
            recipe, abstract_arguments(config, inputs, recipe)
        )
        resident = load(config, inputs, progress and folder is not None)
        phases.end("weights and pictures")
        rows = {"text_encoder": jnp.asarray(resident.initial_rows)[None]}
        state = init_state(rows, recipe.optimizer)
        start, state = store.restore(found, state)
        state = sharding.replicate(state, inputs.mesh)
        steps = range(start, max(start, config.max_train_steps))

        stack.enter_context(
            atomic.one_line_errors(
                "output_dir",
                "what was saved before is whole; make room, then run again with "
                "resume_from_checkpoint latest",
            )
        )
        save = write = _ignore
        if folder is not None:
            folder.create()
            write = functools.partial(_export, config, inputs, fingerprints)
            checkpoints = stack.enter_context(
                store.Checkpoints(
                    store.folder_of(config),
                    config.checkpoints_total_limit,
                    identity.describe(config, fingerprints),
                )
            )
            save = checkpoints.save
        run_report = stack.enter_context(
            report.Report(
                config,
                steps,
                progress and folder is not None,
                inputs.pictures.images,
                warnings,
            )
        )
        validate = validation.compile_validation(
            validation.ValidationRun(
                params=resident.params,
                bank=resident.bank,
                recipe=recipe,
                initial_rows=resident.initial_rows,
                tokenizer=inputs.tokenizer,
                previews=inputs.previews,
                output_dir=config.output_dir,
            ),
            run_report,
        )

        def keep(done: int, state: State) -> None:
            save(done, state)
            write(done, state)

        guard = divergence.DivergenceGuard(start, resident.high_norm)
        signals.defer()
        phases.end("initial rows, checkpoint, report")
        if start == 0:
            validate(0, state)
            phases.end("validation before training")
        frozen = {name: resident.params[name] for name in ("text_encoder", "unet")}

        def take(state: State, count: int) -> tuple[State, Metrics]:
            result = train_steps(state, frozen, resident.bank, count)
            if config.profile_startup and not phases.logged:
                jax.block_until_ready(result)
                phases.end("rest of the compilation, first step")
                phases.log()
            return result

        done, state = loop.run(
            take,
            state,
            steps,
            config.examples_per_step,
            [
                loop.Event(config.validation_steps, validate),
                # Last: of a step that is saved, nothing is left to do.
                loop.Event(config.checkpointing_steps, keep),
            ],
            run_report,
            guard.add,
            lambda: guard.diverged or signals.wanted(),
        )
        if guard.diverged or start == steps.stop:  # nothing was left to train
            write(done, state)
        elif start < done < steps.stop:
            keep(done, state)
    if guard.diverged:
        raise UserError(guard.explanation())
    if done < steps.stop:
        raise Stopped(
            f"{signals.name}: {done} of {steps.stop} steps are saved in "
            f"{config.output_dir}; resume_from_checkpoint latest goes on"
        )
    _log.info("wrote %s", config.output_dir)
    learned = _learned(config, state)
    if folder is not None:
        results.finish(config, inputs.model, inputs.tokenizer, learned)
    return [learned]


def _learned(config: run_config.Config, state: State) -> find.Embedding:
    rows = {encoder: np.asarray(of_one)[0] for encoder, of_one in state.rows.items()}
    return find.Embedding(config.placeholder_token, rows)


def _export(
    config: run_config.Config,
    inputs: Inputs,
    fingerprints: Mapping[str, str],
    done: int,
    state: State,
) -> None:
    """Writes what was learned in `done` steps for other programs."""
    about = provenance.of_run(config, inputs.model.scheduler, fingerprints, done)
    learned = _learned(config, state)._replace(provenance=about)
    results.write(config, learned, inputs.pictures.images)


def _ignore(done: int, state: State) -> None:
    """What a process does that does not write."""
