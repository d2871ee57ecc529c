"""What a run tells while it runs: the progress bar, numbers and pictures, the page."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from ti_flax.config import run_config
from ti_flax.reports import metrics_log, page, trackers
from ti_flax.runtime import atomic
from ti_flax.step.state import Metrics


class Shown(NamedTuple):
    """The previews of a prompt; `files` are relative to output_dir."""

    prompt: str
    files: list[str]
    pictures: UInt8[np.ndarray, "N H W 3"]


class Validation(NamedTuple):
    """What is seen of the rows after `step` steps.

    `fixed_loss` is the loss on the fixed set; for each of the K vectors there is its
    L2 distance from where it started, and the nearest words of the vocabulary with
    their cosines, the nearest first. `control` are previews without the word; only the
    first validation has them.
    """

    step: int
    fixed_loss: float
    distance: list[float]
    nearest: list[list[tuple[str, float]]]
    previews: list[Shown]
    control: list[Shown]


class Report:
    """Shows and writes the metrics of each dispatch and validation; a context manager.

    Lines of steps after `steps.start`, of a run that was ended, are dropped.
    metrics.jsonl gets one line a step: `step` (from 1), `loss`, `learning_rate`,
    `grad_norm`, `row_norm` and `row_step` (one number a vector: the L2 norms of the
    row and of its last change), `examples_per_second` (of the dispatch that ran the
    step). validation.jsonl gets the fields of each `Validation`, with previews as
    `prompt` and `files`. Numbers that are not finite are null,
    and a step that had them is `skipped`.

    When resuming (`steps.start` > 0), appends to the earlier run's files and drops
    lines past the checkpoint. Of several hosts, the first writes.
    """

    def __init__(
        self,
        config: run_config.Config,
        steps: range,
        progress: bool,
        pictures: UInt8[np.ndarray, "N H W 3"],
        warnings: Sequence[str],
    ) -> None:
        """`pictures` are those of the training; to `warnings` others may be added."""
        self._config = config
        self._steps = steps
        self._step = steps.start
        self._pictures = pictures
        self._warnings = warnings
        self._earlier_warnings: list[str] = []
        self._writes = jax.process_index() == 0
        self._metrics: TextIO | None = None
        self._validations: TextIO | None = None
        self._sink: trackers.Sink | None = None
        self._bar = tqdm(
            total=steps.stop,
            initial=steps.start,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            disable=not (progress and self._writes),
        )

    def __enter__(self) -> "Report":
        if self._writes:
            folder = self._config.output_dir
            warnings = folder / metrics_log.WARNINGS_NAME
            if self._step == 0:
                metrics_log.remove_samples(folder / metrics_log.SAMPLES_NAME)
                with contextlib.suppress(OSError):
                    warnings.unlink()
            else:
                self._earlier_warnings = metrics_log.read_warnings(warnings)
            self._metrics = metrics_log.open_lines(
                folder / metrics_log.METRICS_NAME, self._step
            )
            self._validations = metrics_log.open_lines(
                folder / metrics_log.VALIDATION_NAME, self._step
            )
            with metrics_log.told("logging_dir"):
                self._sink = trackers.open_sink(
                    self._config.report_to,
                    folder / self._config.logging_dir,
                    self._config.model_dump(mode="json"),
                    self._step,
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        for opened in (self._metrics, self._validations, self._sink):
            if opened is not None:
                opened.close()
        reason = "" if error is None else f"{kind.__name__}: {error}"
        self._write_page(running=False, reason=reason)

    def add(self, metrics: Metrics, num_steps: int, examples_per_second: float) -> None:
        """Adds the first `num_steps` entries of a dispatch's buffers, of slot 0."""
        metrics = Metrics(*(np.asarray(buffer)[:num_steps, 0] for buffer in metrics))
        for index in range(num_steps):
            self._step += 1
            values = {
                name: buffer[index].tolist()
                for name, buffer in metrics._asdict().items()
            }
            values["examples_per_second"] = round(examples_per_second, 3)
            self._write(self._metrics, {"step": self._step, **values})
            self._tell({f"train/{name}": value for name, value in values.items()})
        if self._metrics is not None:
            self._metrics.flush()
        self._bar.update(num_steps)
        loss, row_norm = metrics.loss.mean(), metrics.row_norm[-1].mean()
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, row norm {row_norm:.3f}, "
            f"{examples_per_second:.3g} examples/s"
        )

    def add_validation(self, validation: Validation) -> None:
        """Adds what was seen of the rows after the steps that were added last."""
        line = validation._asdict()
        for key in ("previews", "control"):
            line[key] = [
                {"prompt": shown.prompt, "files": shown.files} for shown in line[key]
            ]
        self._write(self._validations, line)
        if self._validations is not None:
            self._validations.flush()
        # The bar tells the time of steps.
        self._bar.unpause()
        closest = [near[0][1] for near in validation.nearest]
        self._tell(
            {
                "validation/fixed_loss": validation.fixed_loss,
                "validation/distance": validation.distance,
                "validation/nearest_cosine": closest,
            }
        )
        if self._sink is not None:
            self._show(validation)
        self._write_page(running=True)

    def _show(self, validation: Validation) -> None:
        """Hands the sink words and pictures."""
        self._sink.text(validation.step, "nearest words", _table(validation.nearest))
        for name in ("previews", "control"):
            for number, shown in enumerate(getattr(validation, name)):
                side_by_side = np.concatenate(list(shown.pictures), axis=1)
                # TensorBoard replaces other characters by itself, one by one.
                words = re.sub(r"\W+", "_", shown.prompt).strip("_")
                self._sink.picture(
                    validation.step, f"{name}/{number}_{words}", side_by_side
                )

    def _write_page(self, running: bool, reason: str = "") -> None:
        if not self._writes:
            return
        warnings = list(dict.fromkeys([*self._earlier_warnings, *self._warnings]))
        if warnings:
            path = self._config.output_dir / metrics_log.WARNINGS_NAME
            with metrics_log.told(path.name), atomic.atomic_path(path) as temporary:
                temporary.write_text("\n".join(warnings) + "\n", encoding="utf-8")
        status = page.Status(self._step, self._steps.stop, running, reason)
        with metrics_log.told(page.REPORT_NAME):
            page.write(self._config, self._pictures, status, warnings)

    def _write(self, file: TextIO | None, line: Mapping[str, Any]) -> None:
        if file is not None:
            file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")

    def _tell(self, values: Mapping[str, float | list[float]]) -> None:
        """Hands the sink numbers, those of several vectors one by one."""
        if self._sink is None:
            return
        flat = {}
        for name, value in values.items():
            if isinstance(value, list):
                flat |= {f"{name}/{index}": one for index, one in enumerate(value)}
            else:
                flat[name] = value
        finite = {name: value for name, value in flat.items() if np.isfinite(value)}
        self._sink.scalars(self._step, finite)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    match value:
        case float():
            return value if np.isfinite(value) else None
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
    return value


def _table(nearest: Sequence[Sequence[tuple[str, float]]]) -> str:
    """Markdown of the words nearest to each vector."""
    lines = ["| vector | nearest words |", "|---|---|"]
    for index, near in enumerate(nearest):
        words = ", ".join(f"`{word}` {cosine:.3f}" for word, cosine in near)
        lines.append(f"| {index} | {words} |")
    return "\n".join(lines)
