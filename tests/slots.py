"""The smallest model that has every kind of block, and slots to train on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.diffusion.process import Schedule
from ti_flax.models import base_model, known
from ti_flax.models.random_params import random_params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank
from ti_flax.step.optimizer import adamw, learning_rate_schedule
from ti_flax.step.state import init_state

CONFIGS = {
    **known.TINY,
    "text_encoder": known.TINY["text_encoder"]
    | {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1},
    "unet": known.TINY["unet"]
    | {
        "block_out_channels": [8],
        "cross_attention_dim": 16,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "norm_num_groups": 4,
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
}
VOCABULARY = CONFIGS["text_encoder"]["vocab_size"]
WIDTH = CONFIGS["text_encoder"]["hidden_size"]
MODULES = base_model.make_modules(CONFIGS)


class Concept(NamedTuple):
    """What one slot trains on."""

    seed: int
    pictures: int
    prompts: int
    vectors: int
    steps: int = 1000


def make_recipe(devices: int = 1, batch: int = 8, parts: int = 1, **optimizer):
    learning_rate = learning_rate_schedule("constant", 1e-2, 0, 1000)
    settings = {
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": None,
    }
    return train_step.Recipe(
        text_encoder=MODULES["text_encoder"],
        unet=MODULES["unet"],
        scaling_factor=0.18215,
        schedule=Schedule.from_json(CONFIGS["scheduler"]),
        optimizer=adamw(learning_rate, **settings | optimizer),
        learning_rate=learning_rate,
        train_batch_size=batch,
        gradient_accumulation_steps=parts,
        mesh=sharding.make_mesh(jax.devices()[:devices]),
    )


def make_frozen(recipe):
    frozen = {
        name: random_params(CONFIGS, name, seed)
        for seed, name in enumerate(("text_encoder", "unet"))
    }
    return jax.device_put(frozen, sharding.replicated(recipe.mesh))


def make_run(recipe, *concepts: Concept):
    """State and bank with one slot a concept, padded to the largest."""
    vectors = max(concept.vectors for concept in concepts)
    pictures = max(concept.pictures for concept in concepts)
    prompts = max(concept.prompts for concept in concepts)
    slots = [_slot(concept, pictures, prompts, vectors) for concept in concepts]
    rows, moments, ids, masks = (
        np.stack(arrays) for arrays in zip(*slots, strict=True)
    )
    bank = Bank(
        keys=jnp.stack([jax.random.key(concept.seed) for concept in concepts]),
        moments=moments,
        num_pictures=np.array([c.pictures for c in concepts], np.int32),
        prompts=ids,
        num_prompts=np.array([c.prompts for c in concepts], np.int32),
        row_mask=masks,
        max_train_steps=np.array([c.steps for c in concepts], np.int32),
    )
    state = init_state({"text_encoder": jnp.asarray(rows)}, recipe.optimizer)
    return jax.device_put((state, bank), sharding.replicated(recipe.mesh))


def _slot(concept: Concept, pictures: int, prompts: int, vectors: int):
    random = np.random.default_rng(concept.seed)
    rows = np.zeros((vectors, WIDTH), np.float32)
    rows[: concept.vectors] = random.normal(size=(concept.vectors, WIDTH))
    # Padding is NaN: whatever reads it shows.
    moments = np.full((pictures, 2, 4, 4, 8), np.nan, np.float32)
    moments[: concept.pictures] = random.normal(size=(concept.pictures, 2, 4, 4, 8))
    ids = np.zeros((prompts, 77), np.int32)
    ids[: concept.prompts] = random.integers(0, VOCABULARY, (concept.prompts, 77))
    ids[: concept.prompts, 3 : 3 + concept.vectors] = VOCABULARY + np.arange(
        concept.vectors
    )
    return rows, moments, ids, np.arange(vectors) < concept.vectors
