"""Parameters of the Flax modules from and to PyTorch's tensors and keys."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.tree_util import DictKey
from jax.typing import DTypeLike

from ti_flax.models import clip_text, unet, vae
from ti_flax.models.sources import STEMS, weight_files
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, one_line

Params = dict[str, Any]
# Where a weight of a given shape lies.
Layout = Callable[[tuple[int, ...]], jax.sharding.Sharding]
# Modules that PyTorch keeps in a list; their index is a level of its own in the key.
_LISTS = (
    "attentions|down_blocks|downsamplers|layers|net|resnets|to_out|transformer_blocks"
    "|up_blocks|upsamplers"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# The text encoder's keys have it in all files before transformers 5.6.
_TEXT_PREFIX = "text_model."
# In files of old transformers; the positions are 0, 1, 2... in every model.
_BUFFERS = {"embeddings.position_ids"}
# VAE attention before diffusers 0.12 had names of its own.
_OLD_VAE_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def param_shapes(module: nn.Module) -> Params:
    """Shape and dtype of every parameter of a network, nothing allocated."""
    match module:
        case clip_text.ClipText(config=config):
            rows = jnp.zeros((1, 0, config.hidden_size))
            inputs = jnp.zeros((1, config.max_position_embeddings), jnp.int32), rows
        case unet.UNet(config=config):
            side = 2 ** len(config.block_out_channels)
            inputs = (
                jnp.zeros((1, side, side, config.in_channels)),
                jnp.zeros((1,), jnp.int32),
                jnp.zeros((1, 1, config.cross_attention_dim)),
            )
        case vae.Vae(config=config):
            side = 2 * config.downscale
            inputs = (jnp.zeros((1, side, side, config.in_channels)),)
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load_params(
    folder: Path,
    module: nn.Module,
    variant: str | None = None,
    sharding: jax.sharding.Sharding | Layout | None = None,
) -> Params:
    """The params of one network from the safetensors files of its folder.

    Each tensor is read once; of one that is split over hosts, each places its shards.

    Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
    """
    shapes = param_shapes(module)
    sources = _match(folder.name, weight_files(folder, variant), shapes)

    def load(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        file, key = sources[torch_key(path)]
        with safetensors.safe_open(file, framework="numpy") as tensors:
            array = tensors.get_tensor(key).transpose(_from_torch(path, leaf))
        array = np.ascontiguousarray(array, leaf.dtype)
        if sharding is None:
            return jax.device_put(array)
        # device_put would compare the values of all hosts over the network.
        return jax.make_array_from_callback(
            array.shape,
            sharding(array.shape) if callable(sharding) else sharding,
            lambda index: array[index],
        )

    return jax.tree_util.tree_map_with_path(load, shapes)


def save_params(
    folder: Path, config: Mapping[str, Any], params: Params, dtype: DTypeLike
) -> None:
    """Writes config.json and safetensors as diffusers and transformers would."""
    prefix = _TEXT_PREFIX if folder.name == "text_encoder" else ""
    tensors = {
        prefix + torch_key(path): np.ascontiguousarray(
            np.asarray(leaf).transpose(np.argsort(_from_torch(path, leaf))), dtype
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    atomic.write_json(folder / "config.json", config)
    with atomic.atomic_path(folder / f"{STEMS[folder.name]}.safetensors") as path:
        # transformers refuses a file that does not say which framework wrote it.
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def torch_key(path: tuple[DictKey, ...]) -> str:
    """The PyTorch key of a Flax parameter, without the text encoder's prefix."""
    *modules, leaf = (entry.key for entry in path)
    levels = [re.sub(rf"^({_LISTS})_(\d+)$", r"\1.\2", module) for module in modules]
    return ".".join([*levels, _LEAVES.get(leaf, leaf)])


def _from_torch(path: tuple[DictKey, ...], leaf: Any) -> tuple[int, ...]:
    """The axes that turn a PyTorch tensor into this leaf: OIHW to HWIO, OI to IO."""
    if path[-1].key != "kernel":
        return tuple(range(len(leaf.shape)))
    return {4: (2, 3, 1, 0), 2: (1, 0)}[len(leaf.shape)]


def _match(
    component: str, weight_files: list[Path], shapes: Params
) -> dict[str, tuple[Path, str]]:
    """Where each wanted PyTorch key is: the file and the key that it has there."""
    wanted = {
        torch_key(path): tuple(leaf.shape[axis] for axis in axes)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        for axes in [np.argsort(_from_torch(path, leaf))]
    }
    sources: dict[str, tuple[Path, str]] = {}
    faults: dict[str, list[str]] = {"unknown": [], "doubled": [], "misshapen": []}
    for file in weight_files:
        with _open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118, not a dictionary
                name = _modern_key(component, key)
                if name in _BUFFERS:
                    continue
                if name not in wanted:
                    faults["unknown"].append(key)
                    continue
                if name in sources:
                    faults["doubled"].append(key)
                sources[name] = file, key
                shape = tuple(tensors.get_slice(key).get_shape())
                if shape != wanted[name]:
                    faults["misshapen"].append(
                        f"{key} {list(shape)} instead of {list(wanted[name])}"
                    )
    faults["missing"] = [name for name in wanted if name not in sources]
    listed = [
        f"{len(keys)} {fault}: {', '.join(keys)}"
        for fault, keys in faults.items()
        if keys
    ]
    if listed:
        raise UserError(
            f"{component}: the weights do not fit config.json ({'; '.join(listed)}); "
            "use the two files of one model"
        )
    return sources


def _modern_key(component: str, key: str) -> str:
    """The key as the newest diffusers and transformers write it, without prefix."""
    if component == "text_encoder":
        return key.removeprefix(_TEXT_PREFIX)
    if component == "vae" and ".attentions." in key:
        for old, new in _OLD_VAE_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected a safetensors file, found one that cannot be read "
            f"({one_line(error)}); download it again"
        ) from error
