"""A run without a model's files and without pictures: its shapes, and random values.

What is compiled and measured so is the step that a run of the same shapes takes.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from ti_flax.aot import flops
from ti_flax.models import attention, base_model
from ti_flax.models.known import Configs
from ti_flax.runtime import sharding
from ti_flax.step import train_step

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
) -> tuple[train_step.State, train_step.Bank]:
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
    bank = train_step.Bank(
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
    return train_step.init_state(rows, recipe.optimizer), bank


def frozen_shapes(recipe: train_step.Recipe) -> dict[str, base_model.Params]:
    """Shapes, dtypes and places of the weights that a step takes."""
    networks = {"text_encoder": recipe.text_encoder, "unet": recipe.unet}
    return {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=sharding.over_fsdp(recipe.mesh, leaf.shape),
            ),
            base_model.param_shapes(network),
        )
        for name, network in networks.items()
    }


def random_weights(shapes: base_model.Params) -> base_model.Params:
    """Weights of these shapes, made on the devices where they belong.

    Kernels are normal with variance 1 / fan-in and norms the identity, so that
    activations keep their scale through the network, as in a trained one.
    """

    leaves, tree = jax.tree.flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        name, place = path[-1].key, leaf.sharding
        if name in ("scale", "bias"):
            return jnp.full(leaf.shape, name == "scale", leaf.dtype, device=place)
        std = 0.02 if name == "embedding" else np.prod(leaf.shape[:-1]) ** -0.5
        one = jax.jit(_normal, static_argnums=(2, 3), out_shardings=place)
        return one(key, std, leaf.shape, leaf.dtype)

    return tree.unflatten(
        [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)]
    )


# Of the module, so that leaves of one shape are compiled once.
def _normal(key: jax.Array, std: float, shape: tuple, dtype: Any) -> jax.Array:
    return (std * jax.random.normal(key, shape)).astype(dtype)


def abstract(tree: Any, place: Sharding) -> Any:
    """The arrays' shapes and dtypes, placed as `place` says; nothing is moved."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
    )


def count_step(
    recipe: train_step.Recipe, latent_side: int, concepts: int = 1, vectors: int = 1
) -> float:
    """Floating-point operations that one step asks for, all devices together."""
    plain = recipe.unet.clone(plan=attention.Plan("plain", recipe.mesh), remat=False)
    recipe = recipe._replace(unet=plain)
    state, bank = make_run(recipe, latent_side, concepts, vectors)
    return flops.count(
        functools.partial(train_step.train_step, recipe=recipe),
        state,
        frozen_shapes(recipe),
        bank,
    )
