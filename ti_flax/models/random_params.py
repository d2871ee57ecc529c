"""Random weights: one rule, drawn by numpy for files and by JAX on the devices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

from ti_flax.models import families
from ti_flax.models.known import Configs
from ti_flax.models.torch_params import Params, param_shapes


def constant_or_std(
    path: tuple[DictKey, ...], shape: tuple[int, ...]
) -> tuple[float | None, float]:
    """The constant of a weight, or None and the deviation of its normal distribution.

    Kernels have variance 1 / fan-in and norms are the identity, so that activations
    keep their scale through the network, as in a trained one.
    """
    match path[-1].key:
        case "scale":
            return 1.0, 0.0
        case "bias":
            return 0.0, 0.0
        case "embedding":
            return None, 0.02
    return None, math.prod(shape[:-1]) ** -0.5


def random_params(configs: Configs, part: str, seed: int = 0) -> Params:
    """Random float32 params of one network, as numpy arrays."""
    module = families.make_family(configs).parts[part]
    generator = np.random.default_rng(seed)

    def draw(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        constant, std = constant_or_std(path, leaf.shape)
        if constant is not None:
            return np.full(leaf.shape, constant, np.float32)
        array = generator.standard_normal(leaf.shape, np.float32)
        return np.multiply(array, np.float32(std), out=array)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(module))


def random_weights(shapes: Params) -> Params:
    """Weights of these shapes, made on the devices where they belong."""
    leaves, tree = jax.tree.flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        constant, std = constant_or_std(path, leaf.shape)
        if constant is not None:
            return jnp.full(leaf.shape, constant, leaf.dtype, device=leaf.sharding)
        one = jax.jit(_normal, static_argnums=(2, 3), out_shardings=leaf.sharding)
        return one(key, std, leaf.shape, leaf.dtype)

    return tree.unflatten(
        [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)]
    )


# Of the module, so that leaves of one shape are compiled once.
def _normal(key: jax.Array, std: jax.Array, shape: tuple, dtype: Any) -> jax.Array:
    return (std * jax.random.normal(key, shape)).astype(dtype)
