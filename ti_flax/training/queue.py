"""Concepts that wait for slots: each is read ahead, seated, and sees to its end."""

import contextlib
import logging
from collections import deque
from concurrent import futures
from typing import Any, NamedTuple

from ti_flax.config.concepts import Concept
from ti_flax.runtime import compilation, log, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.runtime.progress import Bar
from ti_flax.step import slots
from ti_flax.step.bank import Bank
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.slots import Encoded, Slot
from ti_flax.step.state import State
from ti_flax.step.train_step import StepRecipe
from ti_flax.training import concept as in_training
from ti_flax.training import starts
from ti_flax.training.inputs import Inputs, read_inputs
from ti_flax.training.ledger import Ledger
from ti_flax.training.resident import (
    Encode,
    Resident,
    encode_buckets,
    make_slot,
    tell_length,
)
from ti_flax.training.seat import Seat
from ti_flax.training.starts import LossOf, Race
from ti_flax.training.survey import Group
from ti_flax.training.validation import loss_of_slot
from ti_flax.training.writer import Writer, has_learned, learned

_log = logging.getLogger(__name__)


class Ahead(NamedTuple):
    """A concept that is read, and its pictures encoded, before it has a slot."""

    concept: Concept
    subject: log.Subject
    read: futures.Future[tuple[Inputs, list[Encoded]]]


class Opened(NamedTuple):
    """A concept whose folder is open, before its first step; with its starts' race."""

    concept: Concept
    subject: log.Subject
    inputs: Inputs
    writer: Writer
    newcomer: Slot
    open: contextlib.ExitStack
    race: Race | None = None


class Seated(NamedTuple):
    """A concept in a slot; `open` are its folder and its report."""

    concept: Concept
    training: in_training.Concept
    writer: Writer
    subject: log.Subject
    open: contextlib.ExitStack


class Queue:
    """The concepts of a group: those that wait, and those that have slots.

    A context manager, which closes the folders and reports of the latter.

    Attributes:
        bank: of all slots.
    """

    def __init__(
        self,
        group: Group,
        bank: Bank,
        shared: Inputs,
        recipe: StepRecipe,
        resident: Resident,
        encode: Encode,
        ledger: Ledger,
        bar: Bar,
    ) -> None:
        self.bank, self._shared = bank, shared
        self._recipe, self._resident = recipe, resident
        self._fixed_loss = compilation.compiled_together(compile_fixed_loss(recipe))
        self._encode, self._ledger, self._bar = encode, ledger, bar
        self._waiting = deque(group.concepts)
        self._racing: dict[int, Opened] = {}
        self._seated: dict[int, Seated] = {}
        # One thread, and the autoencoder on one device: what it enqueues there while
        # steps run waits for no other device.
        self._pool = futures.ThreadPoolExecutor(1, "reads the next concepts")
        self._ahead: deque[Ahead] = deque()

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        for there in [*self._racing.values(), *self._seated.values()]:
            there.open.__exit__(*exception)

    def refill(self, state: State, slot: int) -> tuple[State, Seat | None]:
        """Sees to the end of the slot's concept, if any, and seats the next.

        A concept of several starts has a seat for each of them before its own.
        """
        if slot in self._seated:
            self._leave(state, slot)
        waiting: Ahead | Opened | None = self._racing.pop(slot, None)
        if waiting is not None:
            own = slots.state_of(state, slot, waiting.concept.config.num_vectors)
            waiting.race.note(self._loss_in(self.bank, slot)(own.rows))
        while waiting := waiting or self._next():
            try:
                if isinstance(waiting, Ahead):
                    waiting = self._open(waiting)
                state, seat = self._begin(state, slot, waiting)
            except UserError as error:
                self._fail(waiting.concept, str(error))
                seat = None
            if seat is not None:
                return state, seat
            waiting = None
        return state, None

    def put_back(self, state: State) -> None:
        """Saves who is in the middle, for a run that goes on."""
        for slot, seated in list(self._seated.items()):
            seat, config = seated.training.seat, seated.concept.config
            own = slots.state_of(state, slot, config.num_vectors)
            with seated.subject, seated.open:
                if seat.done > seat.start:
                    seated.writer.save(seat.done, own)
            del self._seated[slot]
            self._ledger.wait(seated.concept, seat.done)
        for slot, opened in list(self._racing.items()):
            with opened.subject, opened.open:
                del self._racing[slot]
            self._ledger.wait(opened.concept, 0)

    def _open(self, ahead: Ahead) -> Opened:
        concept, subject, read = ahead
        config = concept.config
        inputs, encoded = read.result()
        subject.silent = False
        with contextlib.ExitStack() as stack, subject:
            writer = stack.enter_context(Writer(config))
            writer.check(inputs)
            newcomer = make_slot(config, inputs, self._resident, encoded)
            return Opened(concept, subject, inputs, writer, newcomer, stack.pop_all())

    def _begin(
        self, state: State, slot: int, opened: Opened
    ) -> tuple[State, Seat | None]:
        """Seats the next of a concept's starts or, after them, the concept itself."""
        concept, _, inputs, writer, newcomer, _, race = opened
        with contextlib.ExitStack() as stack, opened.subject:
            stack.enter_context(opened.open)
            if concept.config.num_starts == 1:
                return self._seat(state, slot, opened._replace(open=stack))
            start = writer.start()
            if start is None:
                race = race or self._race(state, slot, opened)
                one = race.next()
                if one is not None:
                    begun = self._at_beginning(one)
                    state, self.bank = slots.refill(state, self.bank, slot, one, begun)
                    kept = stack.pop_all()
                    self._racing[slot] = opened._replace(race=race, open=kept)
                    return state, race.seat()
                start = starts.tell(race)
            settled = starts.settle(start, inputs, writer, newcomer, self._resident)
            opened = opened._replace(newcomer=settled, open=stack)
            return self._seat(state, slot, opened)

    def _race(self, state: State, slot: int, opened: Opened) -> Race:
        config, inputs, newcomer = opened.concept.config, opened.inputs, opened.newcomer
        self._ledger.begin(opened.concept, 0)
        begun = self._at_beginning(newcomer)
        _, bank = slots.refill(state, self.bank, slot, newcomer, begun)
        loss = self._loss_in(bank, slot)
        return starts.begin(config, inputs, self._resident, newcomer, loss)

    def _loss_in(self, bank: Bank, slot: int) -> LossOf:
        own = slots.bank_of(bank, slot)
        return loss_of_slot(self._fixed_loss, self._resident, own)

    def _at_beginning(self, newcomer: Slot) -> State:
        begun = slots.begin(newcomer, self._recipe.optimizer, self._recipe.window)
        return sharding.replicate(begun, self._recipe.mesh)

    def _seat(
        self, state: State, slot: int, opened: Opened
    ) -> tuple[State, Seat | None]:
        """Puts a concept into a slot; None, where nothing is left to train."""
        concept, subject, inputs, writer, newcomer, stack, _ = opened
        tell_length(concept.config, newcomer)
        steps, begun = writer.restore(self._at_beginning(newcomer))
        begun = sharding.replicate(begun, inputs.mesh)
        new = slots.refill(state, self.bank, slot, newcomer, begun)
        training = stack.enter_context(
            in_training.seated(
                concept.config,
                inputs,
                writer,
                self._resident,
                slots.bank_of(new[1], slot),
                self._fixed_loss,
                steps,
                False,
                subject.heard,
                subject,
            )
        )
        self._ledger.begin(concept, steps.start)
        training.validate_before(begun)
        seated = Seated(concept, training, writer, subject, stack.pop_all())
        # Only now: what failed before is not in the slot.
        state, self.bank = new
        if not steps:
            seated.writer.export(begun)
            self._finish(seated, begun)
            return state, None
        self._seated[slot] = seated
        return state, training.seat

    def _next(self) -> Ahead | None:
        """The concept whose turn it is; reads on, until all slots could be refilled.

        They end together where nothing stops them early.
        """
        slots_there = len(self.bank.row_mask)
        while self._waiting and len(self._ahead) <= slots_there:
            self._ahead.append(self._begin_to_read(self._waiting.popleft()))
        return self._ahead.popleft() if self._ahead else None

    def _begin_to_read(self, concept: Concept) -> Ahead:
        # What it has to tell, the survey has told.
        subject = log.Subject(concept.name, silent=True)

        def read() -> tuple[Inputs, list[Encoded]]:
            with subject:
                inputs = read_inputs(concept.config, self._shared)
                return inputs, encode_buckets(
                    concept.config, inputs, self._encode, progress=False
                )

        return Ahead(concept, subject, self._pool.submit(read))

    def _leave(self, state: State, slot: int) -> None:
        seated = self._seated.pop(slot)
        own = slots.state_of(state, slot, seated.concept.config.num_vectors)
        if not seated.training.guard.diverged:
            self._finish(seated, own)
            return
        with seated.open, seated.subject:
            seated.writer.export(own)
        self._fail(seated.concept, seated.training.guard.explanation())

    def _finish(self, seated: Seated, own: State) -> None:
        """What a run of its own does at its end."""
        config, done = seated.concept.config, seated.training.seat.done
        with seated.subject:
            seated.open.close()
            word, step = learned(config, own)
            kept = f", kept step {step}" if step < done else ""
            reason = "the fixed loss has settled" if has_learned(own) else ""
            try:
                seated.writer.finish(word)
            except UserError as error:
                self._fail(seated.concept, str(error))
                return
            ended = f" ({reason})" if reason else ""
            _log.info("done after %d steps%s%s", done, ended, kept)
        self._ledger.done(seated.concept, done, reason)
        self._told()

    def _fail(self, concept: Concept, reason: str) -> None:
        _log.error("%s: %s", concept.name, reason)
        self._ledger.fail(concept, reason)
        self._told()

    def _told(self) -> None:
        counts, speed = self._ledger.counts(), self._ledger.words_per_hour()
        told = [f"{counts['training']} in training"]
        if counts["failed"]:
            told.append(f"{counts['failed']} failed")
        if speed:
            told.append(f"{speed:.3g} words/h")
        self._bar.set_postfix_str(", ".join(told), refresh=False)
        self._bar.update()
