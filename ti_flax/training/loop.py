"""The training loop: dispatches of steps, and what happens between them."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from ti_flax.reports import report
from ti_flax.runtime import hosts
from ti_flax.step import dispatch
from ti_flax.step.state import Metrics, State

# A dispatch runs about this long: seldom enough to cost nothing, often enough to watch.
_DISPATCH_SECONDS = 1.0


class Event(NamedTuple):
    """Something to do after every `period` steps and after the last one.

    `act` gets the number of steps taken and the state after them, which it must not
    keep: the next dispatch takes its memory.
    """

    period: int
    act: Callable[[int, State], None]

    def next_after(self, done: int) -> int:
        return (done // self.period + 1) * self.period


def run(
    train_steps: Callable[[State, int], tuple[State, Metrics]],
    state: State,
    steps: range,
    examples_per_step: int,
    events: Sequence[Event],
    run_report: report.Report,
    watch: Callable[[Metrics, int], None],
    stop: Callable[[], bool],
) -> tuple[int, State]:
    """Takes the steps of `steps` (`steps.start` are taken already).

    `watch` sees the metrics of every dispatch, in every process. Returns how many steps
    are taken in the end, and the state after them: the last, or where `stop`, which is
    asked after each dispatch, said so.

    A dispatch ends at the next event. Its metrics are read while the one after it
    runs, but for those before an event: what that sees is written down.
    """
    done, length, pending = steps.start, 1, None
    last = time.perf_counter()

    def finish(metrics: Metrics, num_steps: int) -> int:
        """Writes a dispatch's metrics down; the length of another."""
        nonlocal last
        jax.block_until_ready(metrics)
        seconds, last = time.perf_counter() - last, time.perf_counter()
        watch(metrics, num_steps)
        run_report.add(metrics, num_steps, num_steps * examples_per_step / seconds)
        return hosts.broadcast_from_first(_next_length(num_steps, seconds))

    while done < steps.stop and not stop():
        end = min([steps.stop, *(event.next_after(done) for event in events)])
        num_steps = min(length, end - done)
        state, metrics = train_steps(state, num_steps)
        done += num_steps
        if pending is not None:
            length = finish(*pending)
        pending = metrics, num_steps
        if done == end:
            length = finish(*pending)
            pending = None
            for event in events:
                if done in (event.next_after(done - 1), steps.stop):
                    event.act(done, state)
            # What events take is not the steps' time.
            last = time.perf_counter()
    if pending is not None:
        finish(*pending)
    return done, state


def _next_length(num_steps: int, seconds: float) -> int:
    """Steps for a dispatch of `_DISPATCH_SECONDS`, at most doubling at a time."""
    fitting = int(num_steps * _DISPATCH_SECONDS / seconds)
    return max(1, min(fitting, 2 * num_steps, dispatch.MAX_STEPS_A_DISPATCH))
