"""Looks at a run between its steps: what the loss of a step does not tell.

Nothing here changes what training uses; every random number has a key of its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from ti_flax.generation import previews
from ti_flax.models.torch_params import Params
from ti_flax.reports import metrics_log, report
from ti_flax.runtime import compilation, hosts, sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.state import State
from ti_flax.text import nearest_words

if TYPE_CHECKING:
    import transformers


class ValidationRun(NamedTuple):
    """What looks need of a run: `params` as of `previews.Previews.make`."""

    params: Mapping[str, Params]
    bank: Bank
    recipe: train_step.Recipe
    initial_rows: Float32[np.ndarray, "K D"]
    tokenizer: "transformers.CLIPTokenizer"
    previews: previews.Previews | None
    output_dir: Path


def compile_validation(
    run: ValidationRun, run_report: report.Report
) -> Callable[[int, State], None]:
    """The event that looks at a state of the run and reports what it sees."""
    fixed_loss = compilation.compiled_together(compile_fixed_loss(run.recipe))

    def validate(done: int, state: State) -> None:
        hosts.barrier()  # the first process has more to write before one
        rows = state.rows["text_encoder"][0]
        cosines, ids = nearest_words.nearest(_table(run.params["text_encoder"]), rows)
        moved = sharding.whole(rows) - run.initial_rows
        run_report.add_validation(
            report.Validation(
                step=done,
                fixed_loss=float(fixed_loss(state.rows, run.params, run.bank)[0]),
                distance=np.linalg.norm(moved, axis=-1).tolist(),
                nearest=nearest_words.words(
                    run.tokenizer, *map(sharding.whole, (ids, cosines))
                ),
                previews=_show(run, rows, f"step_{done:06d}"),
                # Without the word, nothing changes from step to step.
                control=_show(run, rows, "control") if done == 0 else [],
            )
        )

    return validate


def _show(
    run: ValidationRun, rows: Float[Array, "K D"], name: str
) -> list[report.Shown]:
    """Makes previews, or with the name `control` those, and writes them."""
    if run.previews is None:
        return []
    folder = Path(metrics_log.SAMPLES_NAME, name)
    shown = []
    made = run.previews.make(rows, run.params, control=name == "control")
    for number, (prompt, pictures) in enumerate(made):
        # Every process makes them, one writes.
        if jax.process_index() == 0:
            names = run.previews.save(prompt, pictures, run.output_dir / folder, number)
            paths = [(folder / file).as_posix() for file in names]
            shown.append(report.Shown(prompt, paths, pictures))
    return shown


def _table(text_encoder: Params) -> Float[Array, "V D"]:
    return text_encoder["embeddings"]["token_embedding"]["embedding"]
