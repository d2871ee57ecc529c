"""What a caller hears of a run while it trains: each step's numbers, each look.

A look is a validation. Nothing that a callback gets goes back into the run.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Step(NamedTuple):
    """The numbers of a step, as a line of metrics.jsonl has them.

    `step` is from 1. For each vector of each text encoder, `row_norm` and `row_step`
    are the L2 norms of its row and of the row's last change; `examples_per_second` is
    of the dispatch that ran the step, `fixed_loss` NaN where it was not evaluated. A
    `skipped` step had numbers that are not finite, and changed no row.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    row_norm: list[float]
    row_step: list[float]
    skipped: bool
    examples_per_second: float
    fixed_loss: float


class Shown(NamedTuple):
    """The previews of a prompt; `files` are relative to output_dir."""

    prompt: str
    files: list[str]
    pictures: Collection[UInt8[np.ndarray, "_ _ 3"]]


class Validation(NamedTuple):
    """What is seen of the rows after `step` steps.

    `fixed_loss` is the loss on the fixed set, `loss_by_quarter` that of each quarter of
    the timesteps, the one with the least noise first; for each of the K vectors there
    is its L2 distance from where it started, and the nearest words of the vocabulary
    with their cosines, the nearest first. `control` are previews without the word; only
    the first validation has them.
    """

    step: int
    fixed_loss: float
    loss_by_quarter: list[float]
    distance: list[float]
    nearest: list[list[tuple[str, float]]]
    previews: list[Shown]
    control: list[Shown]


OnStep = Callable[[Step], object]
OnLook = Callable[[Validation], object]


class Callbacks:
    """The functions of a caller, which are called until one of them fails.

    Attributes:
        failure: the exception that one has raised.
    """

    def __init__(
        self, on_step: OnStep | None = None, on_look: OnLook | None = None
    ) -> None:
        self._on_step, self._on_look = on_step, on_look
        self.failure: Exception | None = None

    def step(self, step: Step) -> None:
        """Called with each step, a dispatch's one after another."""
        if self._on_step is not None:
            self._call("on_step", self._on_step, step)

    def look(self, validation: Validation) -> None:
        """Called when all of it is written."""
        if self._on_look is not None:
            self._call("on_look", self._on_look, validation)

    def _call(self, name: str, function: Callable, told: Step | Validation) -> None:
        if self.failure is not None:
            return
        try:
            function(told)
        except Exception as error:
            error.add_note(f"raised by {name} of step {told.step}")
            self.failure = error


NOBODY = Callbacks()
