"""Stops diverging runs, and warns of rows that grow too long."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ti_flax.step.state import Metrics

_log = logging.getLogger(__name__)

# So many in a row do not come of one odd batch.
MAX_SKIPPED = 10
# Rows that are clipped to the limit lie at it, but for rounding.
_ROUNDING = 1e-5


class DivergenceGuard:
    """Watches the metrics of a slot.

    Args:
        slot: of the concept.
        steps_taken: before the first dispatch.
        limits: the row norm to warn of, of each text encoder in turn.
    """

    def __init__(self, slot: int, steps_taken: int, limits: Sequence[float]) -> None:
        self._slot, self._step, self._limits = slot, steps_taken, tuple(limits)
        self._skipped = 0
        self._outgrown = False

    @property
    def diverged(self) -> bool:
        """Whether `MAX_SKIPPED` steps in a row were not finite."""
        return self._skipped >= MAX_SKIPPED

    def add(self, metrics: Metrics, num_steps: int) -> None:
        """Adds the first `num_steps` entries of a dispatch's buffers."""
        skipped = np.asarray(metrics.skipped)[:num_steps, self._slot]
        norms = np.asarray(metrics.row_norm)[:num_steps, self._slot]
        for was_skipped, each in zip(skipped, norms, strict=True):
            self._step += 1
            self._look(bool(was_skipped), each)

    def tell_again(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Warns of what lines of metrics.jsonl show, those before the first dispatch.

        The run that took these steps may have been killed before it wrote that down.
        """
        taken = self._step
        for line in lines:
            if self._are_norms(line.get("row_norm")):
                self._step = line["step"]
                norms = np.array(line["row_norm"], np.float32)  # None is NaN
                self._look(line.get("skipped") is True, norms)
        self._step, self._skipped = taken, 0

    def _are_norms(self, given: object) -> bool:
        """Whether nobody has changed them in the file."""
        if not isinstance(given, list) or not given or len(given) % len(self._limits):
            return False
        return set(map(type, given)) <= {float, type(None)}

    def _look(self, was_skipped: bool, norms: Float[np.ndarray, "EK"]) -> None:
        if was_skipped:
            self._note_skipped()
        elif not self.diverged:
            self._skipped = 0
        longest = norms.reshape(len(self._limits), -1).max(axis=-1)
        for norm, limit in zip(longest, self._limits, strict=True):
            if norm > limit * (1 + _ROUNDING) and not self._outgrown:
                self._note_outgrown(float(norm), float(limit))

    def explanation(self) -> str:
        """What to do about a run that diverged."""
        return (
            f"loss or gradient was not finite in {self._skipped} steps in a row, up to "
            f"step {self._step}; the vectors before them are in learned_embeds: lower "
            "learning_rate or set max_grad_norm and start in another output_dir, from "
            "them with initializer_embedding or anew"
        )

    def _note_outgrown(self, norm: float, limit: float) -> None:
        self._outgrown = True
        _log.warning(
            "step %d: a vector of length %.3g is longer than 99 %% of the vocabulary "
            "(%.3g) and may drown the other words of a prompt; lower learning_rate, or "
            "set hold_row_norm",
            self._step,
            norm,
            limit,
        )

    def _note_skipped(self) -> None:
        self._skipped += 1
        if not self.diverged:  # else the run's end explains it
            _log.warning(
                "step %d: loss or gradient is not finite; the vectors stay as they "
                "were",
                self._step,
            )
