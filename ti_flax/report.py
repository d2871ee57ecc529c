"""What a run tells while it runs: the progress bar and metrics.jsonl."""

import json
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from ti_flax import files, step

METRICS_NAME = "metrics.jsonl"


class Report:
    """Shows and writes the metrics of each dispatch; a context manager.

    Lines of steps after `steps.start`, of a run that was ended, are dropped.
    metrics.jsonl gets one line a step: `step` (from 1), `loss`, `learning_rate`,
    `grad_norm`, `row_norm` (one number a vector), `examples_per_second` (of the
    dispatch that ran the step). A step that was not finite has `skipped`, and null for
    what JSON cannot hold.
    """

    def __init__(self, output_dir: Path, steps: range, progress: bool) -> None:
        self._path = output_dir / METRICS_NAME
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
        _keep_lines(self._path, self._step)
        self._file = self._path.open("a", encoding="utf-8")
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
        for loss, grad_norm, learning_rate, row_norm, skipped in zip(
            *metrics, strict=True
        ):
            self._step += 1
            line = {
                "step": self._step,
                "loss": _finite(loss),
                "learning_rate": float(learning_rate),
                "grad_norm": _finite(grad_norm),
                "row_norm": [float(norm) for norm in row_norm],
                "examples_per_second": round(examples_per_second, 3),
            }
            if skipped:
                line["skipped"] = True
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._bar.update(num_steps)
        loss, row_norm = metrics.loss.mean(), metrics.row_norm[-1].mean()
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, row norm {row_norm:.3f}, "
            f"{examples_per_second:.3g} examples/s"
        )


def _finite(number: np.floating) -> float | None:
    return float(number) if np.isfinite(number) else None


def _keep_lines(path: Path, num_steps: int) -> None:
    """Keeps the lines of the first `num_steps` steps, whole ones only."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    with files.atomic_path(path) as temporary:
        kept = [line for line in lines if json.loads(line)["step"] <= num_steps]
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
