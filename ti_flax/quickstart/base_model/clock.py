"""What both trainings of the base model share: time budget, rate, averages, log."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from ti_flax.quickstart.base_model import workers
from ti_flax.runtime import atomic


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


class Training:
    """A module in training, with all that an interrupted run resumes from in `path`."""

    def __init__(
        self,
        path: Path,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        decay: float,
        seconds: float,
    ) -> None:
        self.path, self.module, self.optimizer = path, module, optimizer
        self.average, self.clock, self.step = Average(module, decay), Clock(seconds), 0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            module.load_state_dict(saved["module"])
            optimizer.load_state_dict(saved["optimizer"])
            self.average.values = saved["average"]
            self.clock, self.step = Clock(seconds, saved["spent"]), saved["step"]

    def set_rate(self, peak: float, progress: float) -> float:
        """The learning rate of the step to come."""
        rate = learning_rate(peak, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def update(self) -> None:
        """One step along the gradients of all processes, of norm 1 at most."""
        workers.average_gradients(self.module.parameters())
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.module, self.step)
        self.step += 1

    def save(self) -> None:
        saved = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "spent": self.clock.spent,
            "step": self.step,
        }
        with atomic.atomic_path(self.path) as temporary:
            torch.save(saved, temporary)
