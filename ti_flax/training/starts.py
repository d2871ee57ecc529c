"""A race of starts: of several words to begin with, the one that learns best goes on.

A row ends in the minimum near to where it began, and words that mean the same to a
person lie in different ones. The fixed loss tells them apart after few steps.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ti_flax.config import run_config
from ti_flax.runtime import sharding
from ti_flax.runtime.progress import Bar
from ti_flax.step import slots
from ti_flax.step.slots import Slot
from ti_flax.step.state import Metrics, Rows, State, init_state
from ti_flax.step.train_step import StepRecipe
from ti_flax.text import nearest_words
from ti_flax.training import loop
from ti_flax.training.inputs import Inputs, Start
from ti_flax.training.resident import Resident
from ti_flax.training.seat import Seat
from ti_flax.training.validation import FixedLossOf, loss_of_slot
from ti_flax.training.writer import Writer

_log = logging.getLogger(__name__)

# Words near to those that are given; the best of them are starts.
_CANDIDATES = 64

LossOf = Callable[[Rows], float]


class Tools(NamedTuple):
    """What a run of one concept trains with."""

    recipe: StepRecipe
    resident: Resident
    train_steps: Callable[..., tuple[State, Metrics]]
    fixed_loss: FixedLossOf


class Race:
    """The starts of a concept, which take `start_steps` each, in turn, in one slot.

    The best begins anew: its run is that of a configuration with its word as
    `initializer_token`, to the bit.

    Attributes:
        results: what has run, each with its fixed loss after its steps.
    """

    def __init__(
        self,
        config: run_config.Config,
        inputs: Inputs,
        resident: Resident,
        slot: Slot,
        loss: LossOf,
        progress: bool = False,
    ) -> None:
        """`slot` is the concept; `loss` is of its rows [1, K, D] by text encoder."""
        self._config, self._slot, self._loss = config, slot, loss
        self._steps = min(config.start_steps, config.max_train_steps)
        self._rows_of = lambda start: inputs.initial_rows(resident.tables, start)
        self._waiting = iter(self._starts(inputs, resident, progress))
        self.results: list[tuple[Start, float]] = []

    def next(self) -> Slot | None:
        """The concept with the rows of the next start; None after the last."""
        self._running = next(self._waiting, None)
        if self._running is None:
            return None
        rows = self._rows_of(self._running)
        return self._slot._replace(rows=rows, max_train_steps=self._steps)

    def seat(self) -> Seat:
        """A start's place in the loop, where nothing is written of it."""
        steps, vectors = range(self._steps), self._config.num_vectors
        return Seat(steps, vectors, (), lambda *_: None, lambda: False)

    def note(self, rows: Rows) -> None:
        """Notes how far the start that runs has come."""
        self.results.append((self._running, self._loss(rows)))

    def best(self) -> Start:
        """The start with the least fixed loss, the first of equals; says all."""
        ranked = sorted(self.results, key=_finite_first)
        told = (f"{start} {loss:.4f}" for start, loss in ranked)
        _log.info(
            "starts by their fixed loss, of which the first learns: %s", ", ".join(told)
        )
        return ranked[0][0]

    def _starts(
        self, inputs: Inputs, resident: Resident, progress: bool
    ) -> list[Start]:
        """Of the words that are given, and the best near to them; or at random."""
        config, seed = self._config, self._config.seed
        if config.initializer_token is None:
            return [Start(None, seed + i) for i in range(config.num_starts)]
        given = [Start(word, seed) for word in config.start_words]
        missing = config.num_starts - len(given)
        if not missing:
            return given
        tokenizer = next(iter(inputs.tokenizers.values()))
        name, table = next(iter(resident.tables.items()))
        middle = np.asarray(self._slot.rows[name]).mean(axis=0)
        near = nearest_words.words_near(
            tokenizer, table, middle, _CANDIDATES, without=config.start_words
        )
        words = Bar(near, desc="words to start from", unit="word", disable=not progress)
        tried = [
            (start, self._loss(_alone(self._rows_of(start))))
            for start in (Start(word, seed) for word in words)
        ]
        ranked = sorted(tried, key=_finite_first)
        return given + [start for start, _ in ranked[:missing]]


def choose(
    config: run_config.Config,
    inputs: Inputs,
    writer: Writer,
    slot: Slot,
    tools: Tools,
    progress: bool,
) -> Slot:
    """The concept of a run with the rows that it begins with.

    They are those of the run to resume, or of the best of the race.
    """
    start = writer.start()
    if start is None:
        start = _run(config, inputs, slot, tools, progress)
    writer.begin_with(start)
    return slot._replace(rows=inputs.initial_rows(tools.resident.tables, start))


def _run(
    config: run_config.Config,
    inputs: Inputs,
    slot: Slot,
    tools: Tools,
    progress: bool,
) -> Start:
    recipe, resident, train_steps, fixed_loss = tools

    def begun(one: Slot) -> tuple[State, slots.Bank]:
        rows, bank = slots.stack([one])
        state = init_state(rows, recipe.optimizer, recipe.window)
        return sharding.replicate((state, bank), inputs.mesh)

    loss = loss_of_slot(fixed_loss, resident, begun(slot)[1])
    race = Race(config, inputs, resident, slot, loss, progress)
    with Bar(
        total=config.num_starts, desc="starts", unit="start", disable=not progress
    ) as bar:
        while (one := race.next()) is not None:
            state, bank = begun(one)

            def take(state: State, count: int, bank=bank) -> tuple[State, Metrics]:
                return train_steps(state, resident.frozen, bank, count)

            state = loop.run(take, state, [race.seat()], _leave, lambda: False)
            race.note(state.rows)
            bar.update()
    return race.best()


def _leave(state: State, slot: int) -> tuple[State, None]:
    return state, None


def _alone(rows: dict[str, np.ndarray]) -> Rows:
    return {name: jnp.asarray(each)[None] for name, each in rows.items()}


def _finite_first(result: tuple[Start, float]) -> float:
    loss = result[1]
    return loss if np.isfinite(loss) else np.inf
