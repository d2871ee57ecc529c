"""What a run tells while it runs: the progress bar, numbers and pictures, the page."""

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jaxtyping import UInt8

from ti_flax.config import run_config
from ti_flax.reports import metrics_log, page, plots, trackers
from ti_flax.reports.callbacks import NOBODY, Callbacks, Step, Validation
from ti_flax.runtime import atomic, errors
from ti_flax.runtime.progress import Bar
from ti_flax.step.state import Metrics


class Sinks(NamedTuple):
    """Where a report goes, beside its page."""

    bar: Bar
    metrics: TextIO
    validations: TextIO
    tracker: trackers.Several
    callbacks: Callbacks


class Report:
    """Shows and writes what a run tells of one slot; `open_report` makes it.

    metrics.jsonl gets one line a step: `step` (from 1), `loss`, `learning_rate`,
    `grad_norm`, `row_norm` and `row_step` (one number a vector: the L2 norms of the
    row and of its last change), `examples_per_second` (of the dispatch that ran the
    step), and `fixed_loss` where it was evaluated. validation.jsonl gets the fields of
    each `Validation`, with previews as `prompt` and `files`. Numbers that are not
    finite are null, and a step that had them is `skipped`.
    """

    def __init__(
        self,
        config: run_config.Config,
        slot: int,
        steps: range,
        pictures: Collection[UInt8[np.ndarray, "_ _ 3"]],
        warnings: Sequence[str],
        usage: page.Usage,
        sinks: Sinks,
    ) -> None:
        """`pictures` are those of the training; to `warnings` others may be added."""
        self._config, self._slot = config, slot
        self._steps, self._step = steps, steps.start
        self._pictures, self._warnings = pictures, warnings
        self._earlier_warnings = _earlier_warnings(config, steps.start)
        self._usage, self._sinks = usage, sinks
        # Before its last step.
        self._learned = False

    def add(self, metrics: Metrics, num_steps: int, examples_per_second: float) -> None:
        """Adds the first `num_steps` entries of a dispatch's buffers."""
        metrics = Metrics(
            *(np.asarray(buffer)[:num_steps, self._slot] for buffer in metrics)
        )
        for index in range(num_steps):
            self._step += 1
            values = {
                name: buffer[index].tolist()
                for name, buffer in metrics._asdict().items()
            }
            del values["running"]
            if np.isnan(values["fixed_loss"]):
                del values["fixed_loss"]
            values["examples_per_second"] = round(examples_per_second, 3)
            _write(self._sinks.metrics, {"step": self._step, **values})
            self._track({f"train/{name}": value for name, value in values.items()})
            told = {"fixed_loss": math.nan, **values}
            self._sinks.callbacks.step(Step(step=self._step, **told))
        self._sinks.metrics.flush()
        self._learned = not metrics.running[-1] and self._step < self._steps.stop
        loss, row_norm = metrics.loss.mean(), metrics.row_norm[-1].mean()
        self._sinks.bar.set_postfix_str(
            f"loss {loss:.4f}, row norm {row_norm:.3f}, "
            f"{examples_per_second:.3g} examples/s",
            refresh=False,
        )
        self._sinks.bar.update(num_steps)

    def add_validation(self, validation: Validation) -> None:
        """Adds what was seen of the rows after the steps that were added last."""
        line = validation._asdict()
        for key in ("previews", "control"):
            line[key] = [
                {"prompt": shown.prompt, "files": shown.files} for shown in line[key]
            ]
        _write(self._sinks.validations, line)
        self._sinks.validations.flush()
        # The bar tells the time of steps.
        self._sinks.bar.unpause()
        closest = [near[0][1] for near in validation.nearest]
        self._track(
            {
                "validation/fixed_loss": validation.fixed_loss,
                "validation/loss_by_quarter": validation.loss_by_quarter,
                "validation/distance": validation.distance,
                "validation/nearest_cosine": closest,
            }
        )
        tracker = self._sinks.tracker
        table = _table(validation.nearest, self._config.num_vectors)
        tracker.text(validation.step, "nearest words", table)
        for name in ("previews", "control"):
            for number, shown in enumerate(getattr(validation, name)):
                side_by_side = np.concatenate(list(shown.pictures), axis=1)
                # TensorBoard replaces other characters by itself, one by one.
                words = re.sub(r"\W+", "_", shown.prompt).strip("_")
                tracker.picture(
                    validation.step, f"{name}/{number}_{words}", side_by_side
                )
        self.write_page(running=True)
        self._sinks.callbacks.look(validation)

    def write_page(self, running: bool, reason: str = "") -> None:
        """Writes report.html, and warnings.txt; `reason` says what ended the run."""
        warnings = list(dict.fromkeys([*self._earlier_warnings, *self._warnings]))
        if warnings:
            path = self._config.output_dir / metrics_log.WARNINGS_NAME
            with metrics_log.told(path.name), atomic.atomic_path(path) as temporary:
                temporary.write_text("\n".join(warnings) + "\n", encoding="utf-8")
        if self._learned:
            running, reason = False, reason or "the fixed loss has settled"
        status = page.Status(self._step, self._steps.stop, running, reason)
        with metrics_log.told(page.REPORT_NAME):
            page.write(self._config, self._usage, self._pictures, status, warnings)

    def _track(self, values: Mapping[str, float | list[float]]) -> None:
        """Hands the tracker numbers, those of several vectors one by one."""
        numbers = metrics_log.one_by_one(values)
        finite = {name: value for name, value in numbers if np.isfinite(value)}
        self._sinks.tracker.scalars(self._step, finite)


class SilentReport(Report):
    """The report of a host that does not write."""

    def __init__(self) -> None:
        pass

    def add(self, metrics: Metrics, num_steps: int, examples_per_second: float) -> None:
        pass

    def add_validation(self, validation: Validation) -> None:
        pass


@contextlib.contextmanager
def open_report(
    config: run_config.Config,
    slot: int,
    steps: range,
    progress: bool,
    pictures: Collection[UInt8[np.ndarray, "_ _ 3"]],
    warnings: Sequence[str],
    usage: page.Usage,
    callbacks: Callbacks = NOBODY,
) -> Iterator[Report]:
    """Opens the report of a run, a silent one on all hosts but the first.

    When resuming (`steps.start` > 0), appends to the earlier run's files and drops
    lines past the checkpoint. In the end the page says how the run ended.
    """
    if jax.process_index() != 0:
        yield SilentReport()
        return
    with contextlib.ExitStack() as stack:
        if steps.start == 0:
            metrics_log.remove_samples(config.output_dir / metrics_log.SAMPLES_NAME)
        sinks = _open_sinks(stack, config, steps, progress, callbacks)
        run_report = Report(config, slot, steps, pictures, warnings, usage, sinks)
        reason = ""
        try:
            yield run_report
        except BaseException as error:
            told = errors.one_line(f"{type(error).__name__}: {error}")
            reason = told.removesuffix(":")  # of an error without a text
            raise
        finally:
            run_report.write_page(running=False, reason=reason)


def _open_sinks(
    stack: contextlib.ExitStack,
    config: run_config.Config,
    steps: range,
    progress: bool,
    callbacks: Callbacks,
) -> Sinks:
    """Opens files, tracker and bar; `stack` closes them."""
    folder = config.output_dir
    metrics, validations = (
        stack.enter_context(metrics_log.open_lines(folder / name, steps.start))
        for name in (metrics_log.METRICS_NAME, metrics_log.VALIDATION_NAME)
    )
    tracker: trackers.Several = trackers.Several([])
    with metrics_log.told("logging_dir"):
        tracker = trackers.open_sink(
            config.report_to,
            folder / config.logging_dir,
            config.model_dump(mode="json"),
            steps.start,
        )
        stack.callback(tracker.close)
    bar = Bar(
        total=steps.stop,
        initial=steps.start,
        unit="step",
        desc="training",
        dynamic_ncols=True,
        disable=not progress,
        starts_with_first=True,
    )
    return Sinks(stack.enter_context(bar), metrics, validations, tracker, callbacks)


def _earlier_warnings(config: run_config.Config, start: int) -> list[str]:
    """Those of the run that is resumed; a new run removes them."""
    path = config.output_dir / metrics_log.WARNINGS_NAME
    if start > 0:
        return metrics_log.read_warnings(path)
    with contextlib.suppress(OSError):
        path.unlink()
    return []


def _write(file: TextIO, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(_finite(line), ensure_ascii=False) + "\n")


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


def _table(nearest: Sequence[Sequence[tuple[str, float]]], num_vectors: int) -> str:
    """Markdown of the words nearest to each vector."""
    lines = ["| vector | nearest words |", "|---|---|"]
    names = plots.vector_names(len(nearest), num_vectors)
    for vector, near in zip(names, nearest, strict=True):
        words = ", ".join(f"`{word}` {cosine:.3f}" for word, cosine in near)
        lines.append(f"| {vector} | {words} |")
    return "\n".join(lines)
