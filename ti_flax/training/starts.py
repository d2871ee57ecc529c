"""A race of starts: of several words to begin with, the one that learns best goes on.

A row ends in the minimum near to where it began, and words that mean the same to a
person lie in different ones. The fixed loss tells them apart after few steps.
"""

import logging
from collections.abc import Callable, Sequence
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
CANDIDATES = 64

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
        starts: Sequence[Start],
        slot: Slot,
        rows_of: Callable[[Start], dict[str, np.ndarray]],
    ) -> None:
        """`slot` is the concept; `rows_of` a start's rows [K, D] by text encoder."""
        self._slot, self._rows_of, self._waiting = slot, rows_of, iter(starts)
        self._steps = min(config.start_steps, config.max_train_steps)
        self._vectors = config.num_vectors
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
        steps = range(self._steps)
        return Seat(steps, self._vectors, (), lambda *_: None, lambda: False)

    def note(self, loss: float) -> None:
        """Notes how far the start that runs has come."""
        self.results.append((self._running, loss))

    def ranked(self) -> list[tuple[Start, float]]:
        """The starts from the least fixed loss up, the first of equals first."""
        return sorted(self.results, key=_finite_first)


def starts_of(
    config: run_config.Config, near: Sequence[str], losses: Sequence[float]
) -> list[Start]:
    """The words that are given, and of those near to them the best; or at random.

    `losses` are the fixed losses of the words that are near, as they are.
    """
    seed = config.seed
    if config.initializer_token is None:
        return [Start(None, seed + i) for i in range(config.num_starts)]
    tried = zip((Start(word, seed) for word in near), losses, strict=True)
    best = [start for start, _ in sorted(tried, key=_finite_first)]
    given = [Start(word, seed) for word in config.start_words]
    return (given + best)[: config.num_starts]


def begin(
    config: run_config.Config,
    inputs: Inputs,
    resident: Resident,
    slot: Slot,
    loss: LossOf,
    progress: bool = False,
) -> Race:
    """The race of a concept; `loss` is of its rows [1, K, D] by text encoder."""

    def rows_of(start: Start) -> dict[str, np.ndarray]:
        return inputs.initial_rows(resident.tables, start)

    near: list[str] = []
    if 0 < len(config.start_words) < config.num_starts:
        tokenizer = next(iter(inputs.tokenizers.values()))
        name, table = next(iter(resident.tables.items()))
        middle = np.asarray(slot.rows[name]).mean(axis=0)
        near = nearest_words.words_near(
            tokenizer, table, middle, CANDIDATES, without=config.start_words
        )
    words = Bar(near, desc="words to start from", unit="word", disable=not progress)
    losses = [loss(_alone(rows_of(Start(word, config.seed)))) for word in words]
    return Race(config, starts_of(config, near, losses), slot, rows_of)


def tell(race: Race) -> Start:
    """The best start of a race; says what all came to."""
    ranked = race.ranked()
    told = ", ".join(f"{start} {loss:.4f}" for start, loss in ranked)
    _log.info("starts by their fixed loss, of which the first learns: %s", told)
    return ranked[0][0]


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
    return settle(start, inputs, writer, slot, tools.resident)


def settle(
    start: Start, inputs: Inputs, writer: Writer, slot: Slot, resident: Resident
) -> Slot:
    """The concept with the rows of its start, which what is written will name."""
    writer.begin_with(start)
    return slot._replace(rows=inputs.initial_rows(resident.tables, start))


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
    race = begin(config, inputs, resident, slot, loss, progress)
    with Bar(
        total=config.num_starts, desc="starts", unit="start", disable=not progress
    ) as bar:
        while (one := race.next()) is not None:
            state, bank = begun(one)

            def take(state: State, count: int, bank=bank) -> tuple[State, Metrics]:
                return train_steps(state, resident.frozen, bank, count)

            state = loop.run(take, state, [race.seat()], loop.nobody_waits, _never)
            race.note(loss(state.rows))
            bar.update()
    return tell(race)


def _never() -> bool:
    return False


def _alone(rows: dict[str, np.ndarray]) -> Rows:
    return {name: jnp.asarray(each)[None] for name, each in rows.items()}


def _finite_first(result: tuple[Start, float]) -> float:
    loss = result[1]
    return loss if np.isfinite(loss) else np.inf
