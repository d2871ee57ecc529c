"""The training loop: dispatches of steps, and what happens between them."""

import time
from collections.abc import Callable

import jax
import numpy as np

from ti_flax.runtime import hosts
from ti_flax.step import dispatch, slots
from ti_flax.step.state import Metrics, State
from ti_flax.training.seat import Seat

# A dispatch runs about this long: seldom enough to cost nothing, often enough to watch.
_DISPATCH_SECONDS = 1.0

# State and slot to the state with another concept there, and its seat if there is one.
Refill = Callable[[State, int], tuple[State, Seat | None]]


def run(
    train_steps: Callable[[State, int], tuple[State, Metrics]],
    state: State,
    seats: list[Seat | None],
    refill: Refill,
    stop: Callable[[], bool],
    timed: Callable[[int, float], None] = lambda num_steps, seconds: None,
    grain: int = 1,
) -> State:
    """Takes the steps of all seats, and of those that `refill` puts in their places.

    Returns the state after them, or where `stop`, which is asked after each dispatch,
    said so: `seats` has those that are not over then.
    A dispatch ends at the next event of any seat. Its metrics are read while the one
    after it runs, but for those before an event: what that sees is written down.
    `timed` gets its steps and seconds. Newcomers come after a multiple of `grain` steps
    of the others: what is due after so many is done of all together.
    """
    pace, pending, free = _Pace(), None, []
    room, overlaps = next(iter(state.rows.values())).shape[1], runs_behind()

    def finish(metrics: Metrics, num_steps: int, there: list[tuple[int, Seat]]) -> None:
        metrics = jax.tree.map(np.asarray, metrics)
        seconds = pace.lap(num_steps)
        timed(num_steps, seconds)
        for slot, seat in there:
            own = slots.metrics_of(metrics, slot, seat.vectors, room)
            seat.add(own, num_steps, seconds)

    def act(state: State) -> State:
        for slot, seat in enumerate(seats):
            if seat is not None and seat.is_due():
                if not seat.failed():
                    seat.act(slots.state_of(state, slot, seat.vectors))
                if seat.is_over():
                    seats[slot] = None
                    free.append(slot)
        while free and _begun(seats) % grain == 0 and not stop():
            slot = free.pop(0)
            state, seats[slot] = refill(state, slot)
        pace.rest()  # what events take is not the steps' time
        return state

    while any(seats) and not stop():
        there = [(slot, seat) for slot, seat in enumerate(seats) if seat is not None]
        length = _to_grain(pace.length, _begun(seats), grain)
        num_steps = min(length, *(seat.until_event() for _, seat in there))
        state, metrics = train_steps(state, num_steps)
        for _, seat in there:
            seat.begun += num_steps
        if pending is not None:
            finish(*pending)
        pending = metrics, num_steps, there
        if not overlaps or free or any(seat.is_due() for _, seat in there):
            finish(*pending)
            pending, state = None, act(state)
    if pending is not None:
        finish(*pending)
        state = act(state)
    return state


def nobody_waits(state: State, slot: int) -> tuple[State, None]:
    """The `Refill` of a run of its own: who is over leaves the slot as it is."""
    return state, None


def runs_behind() -> bool:
    """Whether a dispatch runs while the host goes on.

    A TPU has a program's loop to itself. On a GPU the host asks it after each turn
    whether to go on, so that a call lasts as long as its steps; the CPU's may run while
    it is called (in jax 0.7): they would be timed with another.
    """
    return jax.default_backend() == "tpu"


def _begun(seats: list[Seat | None]) -> int:
    """Steps of the first that has a seat."""
    return next((seat.begun for seat in seats if seat is not None), 0)


def _to_grain(length: int, begun: int, grain: int) -> int:
    """About `length` steps, which end at a multiple of `grain`."""
    whole = (begun + length) // grain * grain - begun
    ends = whole if whole > 0 else grain - begun % grain
    return min(ends, dispatch.MAX_STEPS_A_DISPATCH)


class _Pace:
    """How long dispatches take, and how long the next may be."""

    def __init__(self) -> None:
        self.length, self._last = 1, time.perf_counter()

    def rest(self) -> None:
        """Something else was done until now."""
        self._last = time.perf_counter()

    def lap(self, num_steps: int) -> float:
        """The seconds of a dispatch that has ended, at most doubling the next one."""
        seconds, self._last = time.perf_counter() - self._last, time.perf_counter()
        fitting = min(int(num_steps * _DISPATCH_SECONDS / seconds), 2 * num_steps)
        fitting = max(1, min(fitting, dispatch.MAX_STEPS_A_DISPATCH))
        self.length = hosts.broadcast_from_first(fitting)
        return seconds
