"""A run without files: random weights, pictures and prompts of given shapes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ti_flax.models import attention, base_model, families
from ti_flax.models.known import Configs
from ti_flax.models.sources import DiffusersFolder
from ti_flax.step import train_step
from ti_flax.step.bank import Bank
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import State, init_state

_PICTURES = 5
_PROMPTS = 27


def make_model(
    configs: Configs, dtype: Any, plan: attention.Plan
) -> base_model.BaseModel:
    """The networks that `configs` describe; there is no folder to load them from."""
    family = families.make_family(configs, dtype, plan)
    return base_model.BaseModel(family, DiffusersFolder(Path()), configs["scheduler"])


def make_run(
    recipe: train_step.StepRecipe, latent_side: int, concepts: int = 1, vectors: int = 1
) -> tuple[State, Bank]:
    """State and bank with a slot for each concept; random pictures and prompts.

    Every prompt has the learned word in it.
    """
    family, random = recipe.family, np.random.default_rng(0)
    moments = _PICTURES, 2, latent_side, latent_side, family.moment_channels

    def ids(vocab_size: int, length: int) -> np.ndarray:
        drawn = random.integers(0, vocab_size, (_PROMPTS, length), np.int32)
        drawn[:, 3 : 3 + vectors] = vocab_size + np.arange(vectors)
        return drawn

    def rows(width: int) -> np.ndarray:
        return np.float32(0.02) * random.standard_normal((vectors, width), np.float32)

    slots = [
        Slot(
            seed_key=seed_key,
            buckets=[
                Encoded(
                    moments=random.standard_normal(moments, np.float32),
                    sizes=np.zeros((_PICTURES, 2, 6), np.int32),
                )
            ],
            prompts={
                each.name: ids(each.vocab_size, each.length)
                for each in family.text_encoders
            },
            rows={each.name: rows(each.width) for each in family.text_encoders},
            max_train_steps=np.iinfo(np.int32).max,
            learning_rates=np.float32([2e-3]),
            norms={each.name: 1.0 for each in family.text_encoders},
        )
        for seed_key in jax.random.split(jax.random.key(0), concepts)
    ]
    initial, bank = stack(slots)
    return init_state(initial, recipe.optimizer, recipe.window), bank
