"""Shapes and places of what a step takes, known before there are any arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from ti_flax.models.torch_params import Params, param_shapes
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.bank import Bank
from ti_flax.step.slots import Slot, stack
from ti_flax.step.state import State, init_state


class RunShapes(NamedTuple):
    """How large a run's arrays are, in each of its slots.

    `prompts` are number and length by the name of the text encoder; by default 27 of
    the encoder's greatest length. `listed` is the length of a slot's list of pictures;
    by default each picture is in it once. `masked`: the pictures have masks.
    """

    latent_side: int
    vectors: int = 1
    slots: int = 1
    pictures: int = 5
    views: int = 2
    prompts: Mapping[str, tuple[int, int]] | None = None
    listed: int | None = None
    masked: bool = False


def abstract_arguments(
    recipe: train_step.StepRecipe, run: RunShapes
) -> tuple[State, dict[str, Params], Bank]:
    """Shapes, dtypes and places of state, frozen weights and bank."""
    encoders, side = recipe.family.text_encoders, run.latent_side
    moments = run.pictures, run.views, side, side, 2 * recipe.family.latent_channels
    prompts = run.prompts or {each.name: (27, each.length) for each in encoders}

    def make() -> tuple[State, Bank]:
        slot = Slot(
            seed_key=jax.random.key(0),
            moments=jnp.zeros(moments),
            sizes=jnp.zeros((*moments[:2], 6), jnp.int32),
            prompts={
                name: jnp.zeros(each, jnp.int32) for name, each in prompts.items()
            },
            rows={each.name: jnp.zeros((run.vectors, each.width)) for each in encoders},
            max_train_steps=1,
            norms={each.name: 1.0 for each in encoders},
            pictures=jnp.zeros(run.listed or run.pictures, jnp.int32),
            loss_weights=jnp.zeros(moments[:-1]) if run.masked else None,
        )
        rows, bank = stack([slot] * run.slots)
        return init_state(rows, recipe.optimizer), bank

    everywhere = sharding.replicated(recipe.mesh)
    state, bank = abstract(jax.eval_shape(make), everywhere)
    return state, frozen_shapes(recipe), bank


def frozen_shapes(recipe: train_step.StepRecipe) -> dict[str, Params]:
    """Shapes, dtypes and places of the weights that a step takes."""
    return {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=sharding.over_fsdp(recipe.mesh, leaf.shape),
            ),
            param_shapes(network),
        )
        for name, network in recipe.family.trained_through.items()
    }


def abstract(tree: Any, place: Sharding) -> Any:
    """The arrays' shapes and dtypes, placed as `place` says; nothing is moved."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
    )
