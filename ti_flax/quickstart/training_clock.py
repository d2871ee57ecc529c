"""What both trainings of the base model share: time budget, rate, averages, log."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Seconds of training spent, across resumed runs, of a budget."""

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget = budget
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """From 0 to 1, and beyond when the budget is overdrawn."""
        return self.spent / self.budget


def learning_rate(peak: float, step: int, progress: float, warmup: int = 200) -> float:
    """Linear warm-up in steps, then a cosine in time down to 2 % of the peak."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * cosine)


class Average:
    """Exponential moving average of a module's parameters; young averages adapt fast.

    Each step moves the average by max(1 - decay, 1 / (step + 10)) of the difference.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        rate = max(1 - self.decay, 1 / (step + 10))
        current = module.state_dict()
        names = [k for k, v in self.values.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.values[k] for k in names], [current[k] for k in names], rate
        )


def append_log(path: Path, **values: Any) -> None:
    """One JSON line a call, also shown on the terminal."""
    line = json.dumps(
        {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    )
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def save_checkpoint(path: Path, **parts: Any) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(parts, temporary)
    temporary.replace(path)
