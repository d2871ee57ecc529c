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
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import State, init_state


class BucketShape(NamedTuple):
    """Latents of the pictures of one size, and how many there are.

    `listed` is the length of a slot's list of them; by default each is in it once.
    """

    height: int
    width: int
    pictures: int = 5
    listed: int | None = None

    @property
    def latents(self) -> int:
        """Of one picture."""
        return self.height * self.width


class RunShapes(NamedTuple):
    """How large a run's arrays are, in each of its slots.

    `prompts` are number and length by the name of the text encoder; by default 27 of
    the encoder's greatest length. `masked`: the pictures have masks. `rates`: how many
    learning rates there are.
    """

    buckets: tuple[BucketShape, ...]
    vectors: int = 1
    slots: int = 1
    views: int = 2
    prompts: Mapping[str, tuple[int, int]] | None = None
    masked: bool = False
    rates: int = 1

    @property
    def largest(self) -> BucketShape:
        """The bucket whose pictures have the most latents."""
        return max(self.buckets, key=lambda each: each.latents)

    @classmethod
    def square(cls, latent_side: int, **others: Any) -> "RunShapes":
        """Of a run whose pictures are squares."""
        return cls((BucketShape(latent_side, latent_side),), **others)


def abstract_arguments(
    recipe: train_step.StepRecipe, run: RunShapes
) -> tuple[State, dict[str, Params], Bank]:
    """Shapes, dtypes and places of state, frozen weights and bank."""
    everywhere = sharding.replicated(recipe.mesh)
    state, bank = abstract(jax.eval_shape(lambda: empty(recipe, run)), everywhere)
    return state, frozen_shapes(recipe), bank


def empty(recipe: train_step.StepRecipe, run: RunShapes) -> tuple[State, Bank]:
    """State and bank of slots without concepts, which take no steps."""
    encoders, channels = recipe.family.text_encoders, recipe.family.moment_channels
    prompts = run.prompts or {each.name: (27, each.length) for each in encoders}

    def encoded(bucket: BucketShape) -> Encoded:
        height, width, count, listed = bucket
        moments = jnp.zeros((count, run.views, height, width, channels))
        return Encoded(
            moments=moments,
            sizes=jnp.zeros((count, run.views, 6), jnp.int32),
            pictures=jnp.zeros(listed or count, jnp.int32),
            loss_weights=jnp.zeros(moments.shape[:-1]) if run.masked else None,
        )

    slot = Slot(
        seed_key=jax.random.key(0),
        buckets=[encoded(bucket) for bucket in run.buckets],
        prompts={name: jnp.zeros(each, jnp.int32) for name, each in prompts.items()},
        rows={each.name: jnp.zeros((run.vectors, each.width)) for each in encoders},
        max_train_steps=0,
        learning_rates=jnp.zeros(run.rates),
        norms={each.name: 1.0 for each in encoders},
    )
    rows, bank = stack([slot] * run.slots)
    return init_state(rows, recipe.optimizer, recipe.window), bank


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
