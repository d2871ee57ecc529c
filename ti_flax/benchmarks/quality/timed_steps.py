"""The steps of concepts side by side, and how long they take."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from ti_flax.benchmarks.quality.base_model import LoadedModel
from ti_flax.runtime import sharding
from ti_flax.runtime.progress import Bar
from ti_flax.step.slots import Slot, stack
from ti_flax.step.state import Metrics, State, init_state
from ti_flax.step.train_step import StepRecipe

_STEPS_A_DISPATCH = 10


@dataclasses.dataclass
class Clock:
    """Seconds of races, and of dispatches after each run's first, with their steps."""

    races: float = 0.0
    dispatches: float = 0.0
    steps: int = 0

    def of_a_word(self, banks: Sequence[Sequence[int]]) -> tuple[float | None, float]:
        """Seconds of one of its steps, and of its race; all banks are as large."""
        slots = len(banks[0])
        step = self.dispatches / self.steps / slots if self.steps else None
        return step, self.races / len(banks) / slots


def take_steps(
    train_steps: Callable[..., tuple[State, Metrics]],
    recipe: StepRecipe,
    slots: Sequence[Slot],
    frozen: LoadedModel,
    bar: Bar,
    judge_after: Sequence[int] = (),
    clock: Clock | None = None,
) -> Iterator[tuple[int, State]]:
    """The steps so far and the state of concepts side by side, after each dispatch.

    One ends wherever rows are judged, and the last with the steps that they have. The
    next gives up the state.
    """
    total = max(slot.max_train_steps for slot in slots)
    bar.total = bar.n + total
    rows, bank = stack(slots)
    state = init_state(rows, recipe.optimizer, recipe.window)
    state, bank = jax.device_put((state, bank), sharding.replicated(frozen.mesh))
    ends = {*range(_STEPS_A_DISPATCH, total, _STEPS_A_DISPATCH), *judge_after, total}
    for done, end in itertools.pairwise(sorted({0, *ends})):
        if end > total:
            break
        start, num_steps = time.perf_counter(), end - done
        state, metrics = train_steps(state, frozen.params, bank, num_steps)
        running = np.asarray(metrics.running)[num_steps - 1].any()
        if clock is not None and done > 0:  # the first may have compiled
            clock.dispatches += time.perf_counter() - start
            clock.steps += num_steps
        bar.update(num_steps)
        yield end, state
        if not running:
            break
