"""A run without a model's files and without pictures: its shapes, and random values.

What is compiled and measured so is the step that a run of the same shapes takes.
"""

from typing import Any

import jax
from jax.sharding import Sharding

from ti_flax.models.torch_params import Params, param_shapes
from ti_flax.runtime import sharding
from ti_flax.step import train_step


def frozen_shapes(recipe: train_step.Recipe) -> dict[str, Params]:
    """Shapes, dtypes and places of the weights that a step takes."""
    networks = {"text_encoder": recipe.text_encoder, "unet": recipe.unet}
    return {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=sharding.over_fsdp(recipe.mesh, leaf.shape),
            ),
            param_shapes(network),
        )
        for name, network in networks.items()
    }


def abstract(tree: Any, place: Sharding) -> Any:
    """The arrays' shapes and dtypes, placed as `place` says; nothing is moved."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
    )
