"""The loop's seats, events and times, by a device and a clock that the test turns."""

import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.runtime import hosts
from ti_flax.step.state import Metrics, State
from ti_flax.training import loop
from ti_flax.training.seat import Event, Seat

SECONDS = 0.125  # of a step


class Device:
    """Runs dispatches while they are called, or one after another behind the host.

    A slot's state is the steps it has taken; its concept is over after `lengths` of it.
    """

    def __init__(self, overlaps: bool, lengths) -> None:
        self.now, self.free, self.overlaps = 100.0, 100.0, overlaps
        self.lengths, self.dispatches = list(lengths), []

    def train_steps(self, state, num_steps):
        self.dispatches.append(num_steps)
        self.free = max(self.free, self.now) + num_steps * SECONDS
        if not self.overlaps:
            self.now = self.free
        lengths = np.array(self.lengths)
        steps = np.asarray(state.step) + 1 + np.arange(num_steps)[:, None]
        zeros = np.zeros((num_steps, len(lengths), 1), np.float32)
        metrics = Metrics(
            *[zeros[..., 0]] * 3,
            row_norm=zeros,
            row_step=zeros,
            skipped=zeros[..., 0] > 0,
            running=Buffer(self, self.free, steps < lengths),
            fixed_loss=zeros[..., 0],
        )
        taken = np.minimum(state.step + num_steps, lengths)
        return state._replace(step=jnp.asarray(taken, jnp.int32)), metrics


class Buffer:
    """Reading it waits for its dispatch."""

    def __init__(self, device, ready, content):
        self._device, self._ready, self._content = device, ready, content

    def __array__(self, dtype=None, copy=None):
        self._device.now = max(self._device.now, self._ready)
        return self._content


def empty(slots):
    count = jnp.zeros(slots, jnp.int32)
    return State(count, count, {"text_encoder": jnp.zeros((slots, 1, 2))}, ())


class Told:
    """What a seat was told and asked to do."""

    def __init__(self, device, length, period=35, start=0, fails_at=None):
        self.device, self.speeds, self.steps, self.acted = device, [], 0, []
        self.fails_at = fails_at
        self.seat = Seat(
            range(start, length),
            1,
            [Event(period, self.act)],
            self.add,
            lambda: fails_at is not None and start + self.steps >= fails_at,
        )

    def add(self, metrics, num_steps, steps_per_second):
        assert metrics.running.shape[1] == 1
        self.steps += num_steps
        self.speeds.append(steps_per_second)

    def act(self, done, state):
        assert state.step.tolist() == [done]
        self.acted.append(done)
        self.device.now += 7.0  # not the steps'
        self.device.free = max(self.device.free, self.device.now)


@pytest.fixture(params=[True, False], ids=["behind the host", "while called"])
def make_device(request, monkeypatch):
    def make(lengths):
        device = Device(request.param, lengths)
        monkeypatch.setattr(loop.time, "perf_counter", lambda: device.now)
        monkeypatch.setattr(loop, "runs_behind", lambda: request.param)
        monkeypatch.setattr(hosts, "broadcast_from_first", lambda value: value)
        return device

    return make


def leave(state, slot):
    return state, None


def never():
    return False


def test_a_dispatch_takes_the_time_of_its_steps(make_device):
    device = make_device([80])
    told = Told(device, 80)
    loop.run(device.train_steps, empty(1), [told.seat], leave, never)
    assert told.acted == [35, 70, 80] and told.steps == 80
    np.testing.assert_allclose(told.speeds, 1 / SECONDS)
    # A dispatch runs a second where no event is nearer.
    assert max(device.dispatches) == 1 / SECONDS


def test_a_concept_that_learns_before_its_last_step_is_over(make_device):
    device = make_device([51])
    told = Told(device, 80)
    loop.run(device.train_steps, empty(1), [told.seat], leave, never)
    assert told.acted == [35, 51] and told.steps == 51 and told.seat.ended


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_queue_goes_through_any_number_of_slots(make_device, slots):
    """Each concept takes its own steps, acts at its own, and leaves its slot."""
    lengths = [40, 7, 35, 90, 1, 64]
    device = make_device([0] * slots)
    all_told, waiting, order = [], list(enumerate(lengths)), []

    def refill(state, slot):
        if not waiting:
            return state, None
        number, length = waiting.pop(0)
        order.append(number)
        told = Told(device, length + 10)
        device.lengths[slot] = length
        all_told.append((length, told))
        return state._replace(step=state.step.at[slot].set(0)), told.seat

    state, seats = empty(slots), []
    for slot in range(slots):
        state, seat = refill(state, slot)
        seats.append(seat)
    loop.run(device.train_steps, state, seats, refill, never)
    assert order == [*range(6)] and seats == [None] * slots
    for length, told in all_told:
        assert told.steps == length
        assert told.acted == [*range(35, length, 35), length]


@pytest.mark.parametrize("grain", [1, 3, 4, 7, 200])
def test_newcomers_come_at_a_multiple_of_the_grain(make_device, grain):
    """So that all are after as many steps of their own at the same time."""
    lengths = [5, 18, 33, 33, 2, 11]
    device = make_device([0] * 3)
    waiting, seats, phases = list(lengths), [None] * 3, []

    def refill(state, slot):
        phases.extend(seat.begun % grain for seat in seats if seat is not None)
        if not waiting:
            return state, None
        length = waiting.pop(0)
        device.lengths[slot] = length
        told = Told(device, length + 10, period=16)
        state = state._replace(step=state.step.at[slot].set(0))
        return state, told.seat

    state = empty(3)
    for slot in range(3):
        state, seats[slot] = refill(state, slot)
    loop.run(device.train_steps, state, seats, refill, never, grain=grain)
    assert not waiting and seats == [None] * 3
    assert set(phases) == {0}
    assert max(device.dispatches) <= 128


def test_what_failed_acts_no_more_and_leaves_the_others(make_device):
    device = make_device([60, 60])
    bad, good = Told(device, 60, fails_at=20), Told(device, 60)
    seats = [bad.seat, good.seat]
    loop.run(device.train_steps, empty(2), seats, leave, never)
    assert bad.acted == [] and good.acted == [35, 60] and good.steps == 60


def test_asked_to_stop_it_leaves_who_is_not_over(make_device):
    device = make_device([60, 9])
    long, short = Told(device, 60), Told(device, 9)
    seats = [long.seat, short.seat]
    state = loop.run(
        device.train_steps, empty(2), seats, leave, lambda: device.now > 103
    )
    assert seats == [long.seat, None] and short.acted == [9]
    # All that was begun is done, and told.
    assert long.seat.done == long.steps == int(state.step[0]) < 35
