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
) -> State:
    """Takes the steps of all seats, and of those that `refill` puts in their places.

    Returns the state after them, or where `stop`, which is asked after each dispatch,
    said so: `seats` has those that are not over then.

    A dispatch ends at the next event of any seat. Its metrics are read while the one
    after it runs, but for those before an event: what that sees is written down.
    `timed` gets each one's steps and seconds.
    """
    length, pending, overlaps = 1, None, runs_behind()
    room, last = next(iter(state.rows.values())).shape[1], time.perf_counter()

    def finish(metrics: Metrics, num_steps: int, there: list[tuple[int, Seat]]) -> None:
        """Hands a dispatch's metrics out, and finds the length of another."""
        nonlocal last, length
        metrics = jax.tree.map(np.asarray, metrics)
        seconds, last = time.perf_counter() - last, time.perf_counter()
        timed(num_steps, seconds)
        for slot, seat in there:
            own = slots.metrics_of(metrics, slot, seat.vectors, room)
            seat.add(own, num_steps, seconds)
        length = hosts.broadcast_from_first(_next_length(num_steps, seconds))

    def act(state: State) -> State:
        nonlocal last
        for slot, seat in enumerate(seats):
            if seat is not None and seat.is_due():
                if not seat.failed():
                    seat.act(slots.state_of(state, slot, seat.vectors))
                if seat.is_over():
                    state, seats[slot] = refill(state, slot)
        # What events take is not the steps' time.
        last = time.perf_counter()
        return state

    while any(seats) and not stop():
        there = [(slot, seat) for slot, seat in enumerate(seats) if seat is not None]
        num_steps = min(length, *(seat.until_event() for _, seat in there))
        state, metrics = train_steps(state, num_steps)
        for _, seat in there:
            seat.begun += num_steps
        if pending is not None:
            finish(*pending)
        pending = metrics, num_steps, there
        if not overlaps or any(seat.is_due() for _, seat in there):
            finish(*pending)
            pending, state = None, act(state)
    if pending is not None:
        finish(*pending)
        state = act(state)
    return state


def runs_behind() -> bool:
    """Whether a dispatch runs while the host goes on.

    The CPU's may run while it is called (in jax 0.7), and would be timed with another.
    """
    return jax.default_backend() != "cpu"


def _next_length(num_steps: int, seconds: float) -> int:
    """Steps for a dispatch of `_DISPATCH_SECONDS`, at most doubling at a time."""
    fitting = int(num_steps * _DISPATCH_SECONDS / seconds)
    return max(1, min(fitting, 2 * num_steps, dispatch.MAX_STEPS_A_DISPATCH))
