"""Many concepts in one run: a queue of them on one compiled step."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable

from ti_flax.checkpoints.folder_lock import LOCK_NAME, FolderLock
from ti_flax.config.concepts import Concept, Many, refuse
from ti_flax.reports import trackers
from ti_flax.reports.index_page import INDEX_NAME
from ti_flax.runtime import compilation, jax_settings, sharding
from ti_flax.runtime.errors import Stopped, UserError, listed
from ti_flax.runtime.progress import Bar
from ti_flax.runtime.signals import StopSignals
from ti_flax.step.abstract import empty
from ti_flax.step.state import Metrics, State
from ti_flax.training import loop, room
from ti_flax.training.inputs import Inputs
from ti_flax.training.ledger import Ledger
from ti_flax.training.queue import Queue
from ti_flax.training.resident import Encode, Resident, load, make_encode
from ti_flax.training.survey import Group, survey

_log = logging.getLogger(__name__)


class Spent:
    """What a run of many concepts took.

    A group's first step, which waits for the compiler, counts in nothing.

    Attributes:
        seconds: from the first concept's slot to the end of the last.
        steps: of all slots together, one after another.
        in_steps: seconds of those; the rest is reading, encoding, writing, previews.
    """

    def __init__(self) -> None:
        self.seconds, self.steps, self.in_steps = 0.0, 0, 0.0
        self._compiles = False

    def begin(self) -> None:
        """A group begins."""
        self._compiles, self._began = True, time.perf_counter()

    def add(self, steps: int, seconds: float) -> None:
        """Adds a dispatch."""
        if self._compiles:
            self._compiles = False
            self._began += seconds
            return
        self.steps += steps
        self.in_steps += seconds

    def end(self) -> None:
        """A group ends."""
        self.seconds += time.perf_counter() - self._began


@jax_settings.fixed()
def train_many(many: Many, progress: bool = True) -> Spent:
    """Trains all concepts, each into its own folder as a run of its own would.

    A concept that fails does not stop the others.

    Raises:
        UserError: which concepts failed, after all others are done.
        Stopped: SIGTERM or SIGINT came; the same command goes on.
    """
    first = many.concepts[0].config
    compilation.keep_compiled(first.compilation_cache_dir)
    trackers.check(first.report_to)
    spent = Spent()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        name = LOCK_NAME + many.part.suffix
        lock = FolderLock(many.output_dir, "output_dir", name)
        lock.take()
        stack.callback(lock.give_up)
        ledger = Ledger(many)
        waiting = [one for one in many.own if not ledger.is_done(one)]
        groups, shared, bad = survey(waiting)
        _tell(bad, ledger, len(waiting), many)
        signals.defer()
        stack.callback(ledger.close)
        bar = Bar(
            total=len(many.own),
            initial=len(many.own) - len(waiting) + len(bad),
            unit="word",
            desc="training",
            dynamic_ncols=True,
            disable=not progress,
        )
        stack.enter_context(bar)
        networks = functools.cache(functools.partial(_load, many, shared))
        for group in groups:
            if not signals.wanted():
                _train(group, many.slots, shared, networks, ledger, bar, signals, spent)
    _end(many, ledger, signals, spent)
    return spent


def _tell(
    bad: list[tuple[Concept, str]], ledger: Ledger, count: int, many: Many
) -> None:
    """Says what is wrong with any concept, before the long work."""
    for concept, reason in bad:
        if many.skips_bad:
            _log.warning("%s: %s", concept.name, reason)
            ledger.fail(concept, reason)
        else:
            _log.error("%s: %s", concept.name, reason)
    refuse(len(bad), count - len(bad), many.skips_bad)


def _load(many: Many, shared: Inputs) -> tuple[Encode, Resident]:
    """What all groups share on the devices."""
    family = shared.model.family
    autoencoder = shared.model.load(family.autoencoder.name)
    shows = any(concept.config.validation_prompt for concept in many.own)
    encode = make_encode(family, autoencoder)
    return encode, load(shared, autoencoder, shows)


def _train(
    group: Group,
    slots: int | None,
    shared: Inputs,
    networks: Callable[[], tuple[Encode, Resident]],
    ledger: Ledger,
    bar: Bar,
    signals: StopSignals,
    spent: Spent,
) -> None:
    """Trains the concepts of a group, until a signal comes."""
    config, mesh = group.concepts[0].config, shared.mesh
    latents = group.shapes.largest.latents
    asked = slots or room.unasked_slots(config, shared.model.family, latents, mesh)
    step = room.begin(group, shared, ledger.slots_for(group.concepts, asked))
    encode, resident = networks()  # while the step compiles
    if slots is None:
        step = room.fitting(group, shared, step)
    recipe, shapes, train_steps = step
    count = ledger.slots_for(group.concepts, shapes.slots)
    _log.info("%d concepts, %d at once", len(group.concepts), count)
    sharding.warn_of_padding(config.train_batch_size, mesh, count)
    state, bank = sharding.replicate(empty(recipe, shapes), mesh)
    with Queue(group, bank, shared, recipe, resident, encode, ledger, bar) as queue:

        def take(state: State, num_steps: int) -> tuple[State, Metrics]:
            return train_steps(state, resident.frozen, queue.bank, num_steps)

        spent.begin()
        seats = []
        for slot in range(count):
            state, seat = queue.refill(state, slot)
            seats.append(seat)
        # The fixed loss is of all slots at once, or it would be evaluated at each step.
        grain = 1 if recipe.window is None else recipe.fixed_loss_steps
        wanted = signals.wanted
        state = loop.run(take, state, seats, queue.refill, wanted, spent.add, grain)
        queue.put_back(state)
        spent.end()


def _end(many: Many, ledger: Ledger, signals: StopSignals, spent: Spent) -> None:
    """Says how it went."""
    counts, failed = ledger.counts(), ledger.failed()
    if counts["waiting"]:
        raise Stopped(
            f"{signals.name}: {counts['done']} of {len(many.own)} concepts are "
            f"done; what was begun is saved in {many.output_dir}, and the same command "
            "goes on"
        )
    if failed:
        raise UserError(
            f"{len(failed)} of {counts.total()} concepts failed: "
            f"{listed(name for name, _ in failed)}; their reasons are in "
            f"{many.output_dir / INDEX_NAME}; the others are done"
        )
    _log.info("wrote %d concepts to %s", counts["done"], many.output_dir)
    if spent.seconds:
        share = 100 * spent.in_steps / spent.seconds
        _log.info(
            "%.0f s from the first slot on, %.0f %% of them in steps",
            spent.seconds,
            share,
        )
