"""Random weights, for tests and benchmarks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.models import base_model, known
from ti_flax.models.torch_params import Params, param_shapes


def random_params(configs: known.Configs, component: str, seed: int = 0) -> Params:
    """Random float32 params of one network, as numpy arrays.

    Kernels are normal with variance 1 / fan-in, norms are the identity: activations
    keep their scale through the network, as in a trained one.
    """
    module = base_model.make_modules(configs)[component]
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            return np.ones(leaf.shape, np.float32)
        if name == "bias":
            return np.zeros(leaf.shape, np.float32)
        std = 0.02 if name == "embedding" else np.prod(leaf.shape[:-1]) ** -0.5
        array = generator.standard_normal(leaf.shape, np.float32)
        return np.multiply(array, np.float32(std), out=array)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(module))


def random_weights(shapes: Params) -> Params:
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
