"""A concept in training: its folder, its report, and what is due after which step."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

from ti_flax.config import run_config
from ti_flax.publishing import usage, words
from ti_flax.reports import metrics_log, page, report
from ti_flax.reports.callbacks import NOBODY, Callbacks
from ti_flax.step.bank import Bank
from ti_flax.step.state import Metrics, State
from ti_flax.training import divergence, validation
from ti_flax.training.inputs import Inputs
from ti_flax.training.resident import Resident
from ti_flax.training.seat import Event, Seat
from ti_flax.training.validation import FixedLossOf
from ti_flax.training.writer import Writer

_ALONE = 0  # its slot in metrics that are of it alone


class Concept:
    """A concept that has a slot.

    Attributes:
        seat: for the loop.
        guard: of its rows.
    """

    def __init__(
        self,
        config: run_config.Config,
        inputs: Inputs,
        writer: Writer,
        resident: Resident,
        bank: Bank,
        fixed_loss: FixedLossOf,
        run_report: report.Report,
        steps: range,
        about: contextlib.AbstractContextManager,
    ) -> None:
        self.guard = divergence.DivergenceGuard(
            _ALONE, steps.start, [*resident.high_norms.values()]
        )
        path = config.output_dir / metrics_log.METRICS_NAME
        if steps.start > 0:
            with about:
                self.guard.tell_again(metrics_log.read_lines(path))
        self._report, self._examples = run_report, config.examples_per_step
        self._about = about
        self._validate = validation.compile_validation(
            config, inputs, resident, bank, fixed_loss, run_report
        )
        # The checkpoint last: of a step that is saved, nothing is left to do.
        events = [
            Event(config.validation_steps, writer.look),
            Event(config.validation_steps, self._validate),
            Event(config.checkpointing_steps, writer.save),
        ]
        self.seat = Seat(
            steps, config.num_vectors, events, self._add, lambda: self.guard.diverged
        )

    def validate_before(self, state: State) -> None:
        """Validates a concept that has taken no step; `state` is its own."""
        if self.seat.done == 0:
            self._validate(0, state)

    def _add(self, metrics: Metrics, num_steps: int, steps_per_second: float) -> None:
        with self._about:
            self.guard.add(metrics, num_steps)
            self._report.add(metrics, num_steps, steps_per_second * self._examples)


@contextlib.contextmanager
def seated(
    config: run_config.Config,
    inputs: Inputs,
    writer: Writer,
    resident: Resident,
    bank: Bank,
    fixed_loss: FixedLossOf,
    steps: range,
    progress: bool,
    warnings: Sequence[str],
    about: contextlib.AbstractContextManager | None = None,
    callbacks: Callbacks = NOBODY,
) -> Iterator[Concept]:
    """Opens the folder and the report of a concept, which is to take `steps`.

    `bank` is of its slot alone. To `warnings`, which the report shows, others may be
    added. Inside `about`, which is entered often, its metrics are looked through;
    `callbacks` hear of them.
    """
    about = contextlib.nullcontext() if about is None else about
    writer.open()
    pictures = inputs.pictures.images
    told = _usage(config, inputs), callbacks
    with report.open_report(
        config, _ALONE, steps, progress, pictures, warnings, *told
    ) as run_report:
        yield Concept(
            config, inputs, writer, resident, bank, fixed_loss, run_report, steps, about
        )


def _usage(config: run_config.Config, inputs: Inputs) -> page.Usage:
    family, prompt = inputs.model.family, page.example(config)
    widths = [encoder.width for encoder in family.text_encoders]
    return page.Usage(
        usage.in_diffusers(config, family.pipeline, widths, prompt),
        usage.file_for_others(widths),
        functools.partial(words.path_of, config.output_dir, config.placeholder_token),
    )
