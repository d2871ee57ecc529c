"""What a run tells while it runs: the progress bar and metrics.jsonl."""

import json
import os
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from tqdm import tqdm

from ti_flax import step

METRICS_NAME = "metrics.jsonl"


class Report:
    """Shows and writes the metrics of each dispatch; a context manager.

    metrics.jsonl gets one line a step: `step` (from 1), `loss`, `learning_rate`,
    `grad_norm`, `row_norm` (one number a vector), `examples_per_second` (of the
    dispatch that ran the step).
    """

    def __init__(self, output_dir: Path, steps: range, progress: bool) -> None:
        first = jax.process_index() == 0  # the only process that writes
        self._path = output_dir / METRICS_NAME if first else Path(os.devnull)
        self._step = steps.start
        self._file: TextIO | None = None
        self._bar = tqdm(
            total=steps.stop,
            initial=steps.start,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            disable=not progress,
        )

    def __enter__(self) -> "Report":
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        self._file.close()

    def add(
        self, metrics: step.Metrics, num_steps: int, examples_per_second: float
    ) -> None:
        """Adds the first `num_steps` entries of a dispatch's buffers, of slot 0."""
        metrics = step.Metrics(
            *(np.asarray(buffer)[:num_steps, 0] for buffer in metrics)
        )
        for loss, grad_norm, learning_rate, row_norm in zip(*metrics, strict=True):
            self._step += 1
            line = {
                "step": self._step,
                "loss": float(loss),
                "learning_rate": float(learning_rate),
                "grad_norm": float(grad_norm),
                "row_norm": [float(norm) for norm in row_norm],
                "examples_per_second": round(examples_per_second, 3),
            }
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._bar.update(num_steps)
        loss, row_norm = metrics.loss.mean(), metrics.row_norm[-1].mean()
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, row norm {row_norm:.3f}, "
            f"{examples_per_second:.3g} examples/s"
        )
