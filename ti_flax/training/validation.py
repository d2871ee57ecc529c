"""Validation: what the loss of a step does not tell of a run.

Nothing here changes what training uses; every random number has a key of its own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from ti_flax.config import run_config
from ti_flax.generation import previews
from ti_flax.reports import metrics_log, report
from ti_flax.runtime import compilation, hosts, sharding
from ti_flax.step import train_step
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.state import State
from ti_flax.text import nearest_words
from ti_flax.training.inputs import Inputs
from ti_flax.training.resident import Resident


def compile_validation(
    config: run_config.Config,
    inputs: Inputs,
    resident: Resident,
    recipe: train_step.StepRecipe,
    run_report: report.Report,
    slot: int,
) -> Callable[[int, State], None]:
    """The event that validates the word of a slot and reports what it finds."""
    params = resident.params
    fixed_loss = compilation.compiled_together(compile_fixed_loss(recipe))
    began = {
        name: np.asarray(sharding.whole(rows))[slot]
        for name, rows in resident.bank.initial.items()
    }
    encoders = recipe.family.text_encoders

    def validate(done: int, state: State) -> None:
        hosts.barrier()  # the first process has more to write before one
        rows = {name: each[slot] for name, each in state.rows.items()}
        distance, nearest = [], []
        for encoder in encoders:
            own = rows[encoder.name]
            table = encoder.table(params[encoder.name])
            tokenizer = inputs.tokenizers[encoder.name]
            nearest += nearest_words.nearest_words(tokenizer, table, own)
            moved = sharding.whole(own) - began[encoder.name]
            distance += np.linalg.norm(moved, axis=-1).tolist()

        def show(name: str, control: bool = False) -> list[report.Shown]:
            if inputs.previews is None:
                return []
            folder = Path(metrics_log.SAMPLES_NAME, name)
            made = inputs.previews.make(rows, params, control)
            return _save(inputs.previews, made, config.output_dir, folder)

        loss = fixed_loss(state.rows, params, resident.bank)
        run_report.add_validation(
            report.Validation(
                step=done,
                fixed_loss=float(loss.mean[slot]),
                loss_by_quarter=np.asarray(loss.quarters)[slot].tolist(),
                distance=distance,
                nearest=nearest,
                previews=show(f"step_{done:06d}"),
                # Without the word, nothing changes from step to step.
                control=show("control", control=True) if done == 0 else [],
            )
        )

    return validate


def _save(
    shown: previews.Previews,
    made: Iterator[tuple[str, previews.Pictures]],
    output_dir: Path,
    folder: Path,
) -> list[report.Shown]:
    """Writes previews into `folder` of the output folder."""
    saved = []
    for number, (prompt, images) in enumerate(made):
        # Every process makes them, one writes.
        if jax.process_index() == 0:
            names = shown.save(prompt, images, output_dir / folder, number)
            paths = [(folder / file).as_posix() for file in names]
            saved.append(report.Shown(prompt, paths, images))
    return saved
