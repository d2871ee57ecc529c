"""Validation: what the loss of a step does not tell of a run.

Nothing here changes what training uses; every random number has a key of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from ti_flax.config import run_config
from ti_flax.generation import previews
from ti_flax.models.torch_params import Params
from ti_flax.reports import metrics_log, report
from ti_flax.reports.callbacks import Shown, Validation
from ti_flax.runtime import hosts, sharding
from ti_flax.step import slots
from ti_flax.step.bank import Bank
from ti_flax.step.fixed_loss import FixedLoss
from ti_flax.step.state import Rows, State
from ti_flax.text import nearest_words
from ti_flax.training.inputs import Inputs
from ti_flax.training.resident import Resident

FixedLossOf = Callable[[Rows, Mapping[str, Params], Bank], FixedLoss]


def loss_of_slot(
    fixed_loss: FixedLossOf, resident: Resident, bank: Bank
) -> Callable[[Rows], float]:
    """The fixed loss of rows [1, K, D]; `bank` is of their slot alone."""

    def loss(rows: Rows) -> float:
        padded = slots.padded_rows(rows, bank)
        return float(fixed_loss(padded, resident.params, bank).mean[0])

    return loss


def compile_validation(
    config: run_config.Config,
    inputs: Inputs,
    resident: Resident,
    bank: Bank,
    fixed_loss: FixedLossOf,
    run_report: report.Report,
) -> Callable[[int, State], None]:
    """The event that validates a word and reports what it finds.

    `bank` is of the word's slot alone, and so are the states that the event gets.
    """
    params, encoders = resident.params, inputs.model.family.text_encoders
    began = {
        name: np.asarray(sharding.whole(rows))[0] for name, rows in bank.initial.items()
    }

    def validate(done: int, state: State) -> None:
        hosts.barrier()  # the first process has more to write before one
        rows = {name: each[0] for name, each in state.rows.items()}
        distance, nearest = [], []
        for encoder in encoders:
            own = rows[encoder.name]
            table = encoder.table(params[encoder.name])
            tokenizer = inputs.tokenizers[encoder.name]
            nearest += nearest_words.nearest_words(tokenizer, table, own)
            moved = sharding.whole(own) - began[encoder.name][: len(own)]
            distance += np.linalg.norm(moved, axis=-1).tolist()

        def show(name: str, control: bool = False) -> list[Shown]:
            if inputs.previews is None:
                return []
            folder = Path(metrics_log.SAMPLES_NAME, name)
            made = inputs.previews.make(rows, params, control)
            return _save(inputs.previews, made, config.output_dir, folder)

        loss = fixed_loss(slots.padded_rows(state.rows, bank), params, bank)
        run_report.add_validation(
            Validation(
                step=done,
                fixed_loss=float(loss.mean[0]),
                loss_by_quarter=np.asarray(loss.quarters)[0].tolist(),
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
) -> list[Shown]:
    """Writes previews into `folder` of the output folder."""
    saved = []
    for number, (prompt, images) in enumerate(made):
        # Every process makes them, one writes.
        if jax.process_index() == 0:
            names = shown.save(prompt, images, output_dir / folder, number)
            paths = [(folder / file).as_posix() for file in names]
            saved.append(Shown(prompt, paths, images))
    return saved
