"""What it takes to learn a word: steps, examples, seconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ti_flax.benchmarks.quality.curve import Cost
from ti_flax.benchmarks.quality.learn_many import Group
from ti_flax.config.run_config import Config
from ti_flax.step.fixed_loss import num_examples
from ti_flax.training import starts

# What an example counts that goes through the model forward only, beside one that is
# trained: the way back costs about two more.
_FORWARD = 1 / 3


def of_all(config: Config, steps: Sequence[int]) -> dict[str, Any]:
    """The steps of each word of a method, and the examples of all of them.

    Those of races are among them. `forward` are those of fixed losses, which went
    through the model forward only.
    """
    runs, evaluations = [*steps], 0
    if config.num_starts > 1:
        raced = min(config.start_steps, config.max_train_steps)
        runs += [raced] * config.num_starts * len(steps)
        evaluations = (starts.CANDIDATES + config.num_starts) * len(steps)
    if config.window is not None:
        evaluations += sum(each // config.fixed_loss_steps for each in runs)
    return {
        "steps": [*steps],
        "examples": config.examples_per_step * sum(runs),
        "forward": evaluations * num_examples(config.train_batch_size),
    }


def of_word(config: Config, steps: Sequence[int], most: int, group: Group) -> Cost:
    """The cost after `most` steps, or fewer of words that have stopped."""
    taken = [min(each, most) for each in steps]
    total, seconds = of_all(config, taken), None
    if group.step_seconds is not None:
        seconds = group.race_seconds + group.step_seconds * float(np.mean(taken))
    examples = (total["examples"] + _FORWARD * total["forward"]) / len(steps)
    return Cost(most, examples, seconds)
