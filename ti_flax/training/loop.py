"""The training loop: dispatches of steps, and what happens between them."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

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
    are taken in the end, and the state after them: the last, or where the word had
    learned, or where `stop`, which is asked after each dispatch, said so.

    A dispatch ends at the next event. Its metrics are read while the one after it runs,
    but for those before an event: what that sees is written down.
    """
    begun, done, length, pending, ended = steps.start, steps.start, 1, None, False
    last = time.perf_counter()

    def finish(metrics: Metrics, num_steps: int) -> None:
        """Writes a dispatch's metrics down, and finds the length of another."""
        nonlocal done, last, length, ended
        if ended:  # it took no step
            return
        on = np.asarray(metrics.running)[:num_steps].any(axis=1)
        ended, taken = not on[-1], min(num_steps, int(on.sum()) + 1)
        seconds, last = time.perf_counter() - last, time.perf_counter()
        done += taken
        watch(metrics, taken)
        run_report.add(metrics, taken, num_steps * examples_per_step / seconds)
        length = hosts.broadcast_from_first(_next_length(num_steps, seconds))

    def act() -> None:
        nonlocal last
        for event in events:
            if ended or done == event.next_after(done - 1):
                event.act(done, state)
        # What events take is not the steps' time.
        last = time.perf_counter()

    while begun < steps.stop and not ended and not stop():
        end = min([steps.stop, *(event.next_after(begun) for event in events)])
        num_steps = min(length, end - begun)
        state, metrics = train_steps(state, num_steps)
        begun += num_steps
        if pending is not None:
            finish(*pending)
        pending = metrics, num_steps
        if begun == end or ended:
            finish(*pending)
            pending = None
            act()
    if pending is not None:
        finish(*pending)
        if ended:
            act()
    return done, state


def _next_length(num_steps: int, seconds: float) -> int:
    """Steps for a dispatch of `_DISPATCH_SECONDS`, at most doubling at a time."""
    fitting = int(num_steps * _DISPATCH_SECONDS / seconds)
    return max(1, min(fitting, 2 * num_steps, dispatch.MAX_STEPS_A_DISPATCH))
