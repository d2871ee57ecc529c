"""A run without files: random weights, pictures and prompts of given shapes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.models import attention, base_model
from ti_flax.models.known import Configs
from ti_flax.step import train_step
from ti_flax.step.bank import Bank
from ti_flax.step.state import State, init_state

_PICTURES = 5
_PROMPTS = 27


def make_model(
    configs: Configs, dtype: Any, plan: attention.Plan, sample_size: int = 64
) -> base_model.BaseModel:
    """The networks that `configs` describe; there is no folder to load them from."""
    return base_model.BaseModel(
        Path(),
        None,
        **base_model.make_modules(configs, dtype, plan),
        scheduler=configs["scheduler"],
        sample_size=sample_size,
    )


def make_run(
    recipe: train_step.Recipe, latent_side: int, concepts: int = 1, vectors: int = 1
) -> tuple[State, Bank]:
    """State and bank with a slot for each concept; random pictures and prompts.

    Every prompt has the learned word in it.
    """
    config, random = recipe.text_encoder.config, np.random.default_rng(0)
    length, vocabulary = config.max_position_embeddings, config.vocab_size
    ids = random.integers(0, vocabulary, (concepts, _PROMPTS, length))
    ids[:, :, 3 : 3 + vectors] = vocabulary + np.arange(vectors)
    moments = (concepts, _PICTURES, 2, latent_side, latent_side)
    channels = 2 * recipe.unet.config.in_channels
    rows = 0.02 * random.standard_normal((concepts, vectors, config.hidden_size))
    rows = {"text_encoder": jnp.asarray(rows, jnp.float32)}
    bank = Bank(
        keys=jax.random.split(jax.random.key(0), concepts),
        moments=jnp.asarray(random.standard_normal((*moments, channels), np.float32)),
        num_pictures=jnp.full(concepts, _PICTURES),
        prompts=jnp.asarray(ids, jnp.int32),
        num_prompts=jnp.full(concepts, _PROMPTS),
        row_mask=jnp.ones((concepts, vectors), bool),
        max_train_steps=jnp.full(concepts, np.iinfo(np.int32).max),
        # A copy: the state's are given up in the first dispatch.
        initial=jax.tree.map(jnp.copy, rows),
        norm=jnp.ones(concepts),
    )
    return init_state(rows, recipe.optimizer), bank
