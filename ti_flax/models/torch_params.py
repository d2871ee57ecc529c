"""Parameters of the Flax modules from and to PyTorch's tensors and keys."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
from jax.tree_util import DictKey
from jax.typing import DTypeLike

from ti_flax.models.sources import Source
from ti_flax.models.tensors import Tensor
from ti_flax.models.weight_files import STEMS
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, listed, one_line

Params = dict[str, Any]
# Where a weight of a given shape lies.
Layout = Callable[[tuple[int, ...]], jax.sharding.Sharding]
# Modules that PyTorch keeps in a list; their index is a level of its own in the key.
_LISTS = (
    "attentions|down_blocks|downsamplers|layers|net|resnets|to_out|transformer_blocks"
    "|up_blocks|upsamplers"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# A text encoder's keys have it in all files before transformers 5.6, but for the
# projection of the pooled text.
_TEXT_PREFIX = "text_model."
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# What no network here reads: positions, in files of old transformers, which are 0, 1,
# 2... in every model; and what LDMBert would guess words with.
_UNREAD = {"embeddings.position_ids", "to_logits.weight", "to_logits.bias"}
# VAE attention before diffusers 0.12 had names of its own.
_OLD_VAE_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


@functools.cache
def param_shapes(module: nn.Module) -> Params:
    """Shape and dtype of every parameter of a network, nothing allocated.

    Kept, as tracing a network takes seconds: not to be changed by who asks.
    """
    inputs = module.example_inputs()
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def load_params(
    source: Source,
    part: str,
    module: nn.Module,
    sharding: jax.sharding.Sharding | Layout | None = None,
) -> Params:
    """The params of one network from its part of a model's files.

    Each tensor is read once; of one that is split over hosts, each places its shards.

    Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
    """
    shapes = param_shapes(module)
    found = _match(source, part, shapes)

    def load(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = found[torch_key(path)].read().transpose(_from_torch(path, leaf))
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
    tensors = {
        _published_key(folder.name, torch_key(path)): np.ascontiguousarray(
            np.asarray(leaf).transpose(np.argsort(_from_torch(path, leaf))), dtype
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    atomic.write_json(folder / "config.json", config)
    with atomic.atomic_path(folder / f"{STEMS[folder.name][0]}.safetensors") as path:
        # transformers refuses a file that does not say which framework wrote it.
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _published_key(part: str, key: str) -> str:
    """The key as files have it that every program reads."""
    inside = part in _TEXT_ENCODERS and not key.startswith("text_projection")
    return _TEXT_PREFIX + key if inside else key


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


def _match(source: Source, part: str, shapes: Params) -> dict[str, Tensor]:
    """The tensor for each wanted PyTorch key."""
    wanted = {
        torch_key(path): tuple(leaf.shape[axis] for axis in axes)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        for axes in [np.argsort(_from_torch(path, leaf))]
    }
    found: dict[str, Tensor] = {}
    faults: dict[str, list[str]] = {
        "unknown": [],
        "doubled": [],
        "misshapen": [],
        "not of floating point": [],
    }
    for tensor in source.tensors(part):
        name = _modern_key(part, tensor.key)
        if name in _UNREAD:
            continue
        if name not in wanted:
            faults["unknown"].append(tensor.key)
            continue
        if name in found:
            faults["doubled"].append(tensor.key)
        found[name] = tensor
        if tensor.shape != wanted[name]:
            faults["misshapen"].append(
                f"{tensor.key} {list(tensor.shape)} instead of {list(wanted[name])}"
            )
        if tensor.dtype.kind in "biu":
            faults["not of floating point"].append(f"{tensor.key} {tensor.dtype}")
    faults["missing"] = [name for name in wanted if name not in found]
    told = [
        f"{len(keys)} {fault}: {listed(keys)}" for fault, keys in faults.items() if keys
    ]
    if told:
        raise UserError(source.misfit(part, one_line("; ".join(told))))
    return found


def _modern_key(part: str, key: str) -> str:
    """The key as the newest diffusers and transformers write it, without prefix."""
    if part in _TEXT_ENCODERS:
        return key.removeprefix(_TEXT_PREFIX)
    if part == "vae" and ".attentions." in key:
        for old, new in _OLD_VAE_ATTENTION.items():
            key = key.replace(old, new)
    return key
