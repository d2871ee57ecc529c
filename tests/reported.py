"""Steps and validations to hand to a report, and what TensorBoard reads of them."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from ti_flax.reports import callbacks, page
from ti_flax.step.state import Metrics

PROMPT = "a <toy> on a table"
# Those that a run learns from.
PICTURES = np.zeros((1, 8, 8, 3), np.uint8)
USAGE = page.Usage(
    "pipeline.load('<toy>')", "learned_embeds.safetensors", lambda step: Path("none")
)


def add_steps(run_report, first, count):
    """Adds steps of slot 0 whose loss is their number."""
    losses = np.zeros((8, 1), np.float32)
    losses[:count, 0] = np.arange(first, first + count)
    vectors = np.ones((8, 1, 2), np.float32)
    metrics = Metrics(
        losses,
        losses,
        losses,
        vectors,
        vectors,
        losses < 0,
        losses >= 0,
        losses * np.nan,
    )
    run_report.add(metrics, count, 2.0)


def validation_of(step):
    shown = callbacks.Shown(PROMPT, ["a.png"], np.full((1, 8, 8, 3), step, np.uint8))
    return callbacks.Validation(
        step, float(step), [step / 4] * 4, [0.0, 1.0], [[("toy", 0.5)]] * 2, [shown], []
    )


def read_events(folder):
    events = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}
    )
    return events.Reload()


def scalars(events, tag):
    return {event.step: event.value for event in events.Scalars(tag)}
