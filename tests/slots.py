"""The smallest model that has every kind of block, and slots to train on it."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.models import known, stable_diffusion
from ti_flax.models.family import Part
from ti_flax.models.random_params import random_params, random_weights
from ti_flax.models.torch_params import param_shapes
from ti_flax.runtime import sharding
from ti_flax.step import dispatch, train_step
from ti_flax.step.bank import draw_batch
from ti_flax.step.optimizer import adamw
from ti_flax.step.slots import Encoded, Slot, begin, stack
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
NETWORKS = FAMILY = stable_diffusion.make_family(CONFIGS)


class Denoiser(nn.Module):
    """Gains of the channels by context and time: what is no UNet's compiles soon."""

    def example_inputs(self):
        return jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros((1, 77, WIDTH))

    @nn.compact
    def __call__(self, x_t, timesteps, context):
        # The sum over 77 tokens, at about unit scale.
        told = jnp.tanh(nn.Dense(8, name="read")(context)).sum(axis=1) / 8
        told = jnp.concatenate([told, jnp.sin(timesteps / 100)[:, None]], axis=1)
        return x_t * nn.Dense(4, name="gain")(told)[:, None, None, :]


# The text encoder is the network's.
LIGHT = dataclasses.replace(NETWORKS, denoiser=Part("unet", Denoiser()))


class Concept(NamedTuple):
    """What one slot trains on."""

    seed: int
    pictures: int
    prompts: int
    vectors: int
    steps: int = 1000
    rates: tuple[float, ...] = (1e-2,)
    # Each picture has prompts of its own, the first counts thrice, the last prompt
    # takes the place of others.
    captioned: bool = False
    masked: bool = False


def make_recipe(devices: int = 1, batch: int = 8, parts: int = 1, **optimizer):
    settings = {
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": None,
    }
    return train_step.StepRecipe(
        family=FAMILY,
        optimizer=_adamw(**settings | optimizer),
        train_batch_size=batch,
        gradient_accumulation_steps=parts,
        mesh=sharding.make_mesh(jax.devices()[:devices]),
    )


# Recipes of equal settings have one optimizer: `compiled` knows them again.
_adamw = functools.cache(adamw)


def make_frozen(recipe):
    return _frozen(recipe.family, recipe.mesh)


@functools.cache
def _frozen(family, mesh):
    frozen = {
        name: random_params(CONFIGS, name, seed)
        for seed, name in enumerate(("text_encoder", "unet"))
    }
    if family.denoiser is LIGHT.denoiser:
        frozen["unet"] = _light_params()
    return jax.device_put(frozen, sharding.replicated(mesh))


def _light_params():
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        param_shapes(LIGHT.denoiser.module),
    )
    return random_weights(shapes)


_compiled = {}


def compiled(recipe):
    """The steps of a recipe, traced once for each shape of a run.

    What counts compilations, or restarts, compiles its own.
    """
    # By identity, as the tables of an objective have no hash. The recipe is kept with
    # it, so that no other part comes to have the same.
    key = tuple(map(id, recipe))
    if key not in _compiled:
        _compiled[key] = recipe, dispatch.compile_train_steps(recipe)
    return _compiled[key][1]


# `draw_batch` of this family, compiled: its operations one by one take longer.
draw = jax.jit(functools.partial(draw_batch, family=FAMILY))


def make_run(recipe, *concepts: Concept):
    """State and bank with one slot a concept, padded to the largest."""
    rows, bank = stack([make_slot(concept) for concept in concepts])
    # Padding is NaN: whatever reads it shows.
    real = np.asarray([concept.pictures for concept in concepts])
    padded = [_nan_beyond(bucket, real) for bucket in bank.buckets]
    state = init_state(rows, recipe.optimizer)
    placed = state, bank._replace(buckets=tuple(padded))
    return jax.device_put(placed, sharding.replicated(recipe.mesh))


def make_arguments():
    """State, frozen weights and bank of one concept."""
    recipe = make_recipe()
    state, bank = make_run(recipe, Concept(seed=1, pictures=3, prompts=5, vectors=2))
    return state, make_frozen(recipe), bank


def _nan_beyond(bucket, real):
    unreal = np.arange(bucket.moments.shape[1]) >= real[:, None]
    moments = jnp.where(unreal[:, :, None, None, None, None], jnp.nan, bucket.moments)
    return bucket._replace(moments=moments)


def make_slot(concept: Concept) -> Slot:
    random = np.random.default_rng(concept.seed)
    rows = random.normal(size=(concept.vectors, WIDTH)).astype(np.float32)
    moments = random.normal(size=(concept.pictures, 2, 4, 4, 8)).astype(np.float32)
    ids = random.integers(0, VOCABULARY, (concept.prompts, 77)).astype(np.int32)
    ids[:, 3 : 3 + concept.vectors] = VOCABULARY + np.arange(concept.vectors)
    encoded = Encoded(moments, np.zeros((concept.pictures, 2, 6), np.int32))
    slot = Slot(
        seed_key=jax.random.key(concept.seed),
        buckets=[encoded],
        prompts={"text_encoder": ids},
        rows={"text_encoder": rows},
        max_train_steps=concept.steps,
        learning_rates=np.float32(concept.rates),
        norms={"text_encoder": 1.0},
    )
    if concept.masked:
        weights = random.uniform(size=moments.shape[:-1]).astype(np.float32)
        encoded = encoded._replace(loss_weights=weights)
        slot = slot._replace(buckets=[encoded], unmasked_probability=0.25)
    if not concept.captioned:
        return slot
    first = np.arange(concept.pictures) % (concept.prompts - 1)
    spans = np.stack([first, concept.prompts - 1 - first], axis=1)
    encoded = encoded._replace(
        pictures=np.array([0, 0, *range(concept.pictures)], np.int32),
        prompt_spans=spans.astype(np.int32),
    )
    return slot._replace(buckets=[encoded], caption_dropout_rate=0.25)


def newcomer(recipe, concept: Concept):
    """Its slot, and its state alone before the first step."""
    slot = make_slot(concept)
    return slot, begin(slot, recipe.optimizer, recipe.window)


def train(recipe, *concepts, dispatches, restarted=False):
    """The state after the dispatches, between which it goes through host memory.

    Restarted: those after the first are of steps compiled anew.
    """
    state, bank = make_run(recipe, *concepts)
    frozen, run = make_frozen(recipe), compiled(recipe)
    for index, num_steps in enumerate(dispatches):
        if restarted and index == 1:
            run = dispatch.compile_train_steps(recipe)
        state = jax.device_put(jax.tree.map(np.array, state), bank.row_mask.sharding)
        state, _ = run(state, frozen, bank, num_steps)
    return jax.tree.map(np.asarray, state)
