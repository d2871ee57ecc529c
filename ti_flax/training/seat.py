"""A concept's place among the slots, and what happens between its steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ti_flax.step.state import Metrics, State


class Event(NamedTuple):
    """Something to do after every `period` steps and after the last one.

    `act` gets the number of steps taken and the state of that slot alone after them.
    """

    period: int
    act: Callable[[int, State], None]

    def next_after(self, done: int) -> int:
        return (done // self.period + 1) * self.period


class Seat:
    """A concept in a slot, and how many steps it has taken.

    Attributes:
        start: steps taken before it got the slot.
        done: steps taken whose metrics are read.
        ended: that was its last step, or it has learned.
    """

    def __init__(
        self,
        steps: range,
        vectors: int,
        events: Sequence[Event],
        add: Callable[[Metrics, int, float], None],
        failed: Callable[[], bool],
    ) -> None:
        """It is to take `steps`, of which it learns `vectors` rows.

        `add` gets the metrics of each dispatch, how many of its steps were taken, and
        how many each second; `failed` says afterwards whether to give up.
        """
        self.vectors, self._stop, self._events = vectors, steps.stop, events
        self.start = self.begun = self.done = steps.start
        self.ended = not steps
        self._add, self.failed = add, failed

    def until_event(self) -> int:
        """Steps until something is to be done."""
        ends = [self._stop, *(event.next_after(self.begun) for event in self._events)]
        return min(ends) - self.begun

    def add(self, metrics: Metrics, num_steps: int, seconds: float) -> None:
        """Adds a dispatch's metrics of this slot alone."""
        if self.ended:  # it took no step
            return
        running = np.asarray(metrics.running)[:num_steps, 0]
        self.ended = not running[-1]
        taken = min(num_steps, int(running.sum()) + 1)
        self.done += taken
        self._add(metrics, taken, num_steps / seconds)

    def is_due(self) -> bool:
        """Whether the loop has to stop here, when all that was begun is done."""
        ends = [
            self._stop,
            *(event.next_after(self.begun - 1) for event in self._events),
        ]
        return self.is_over() or self.begun in ends

    def is_over(self) -> bool:
        return self.ended or self.failed()

    def act(self, state: State) -> None:
        """Does what is due, with the state of this slot alone."""
        for event in self._events:
            if self.ended or self.done == event.next_after(self.done - 1):
                event.act(self.done, state)
