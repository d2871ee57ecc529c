"""What a single file holds, whatever its container."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ti_flax.models import safetensors_weights, torch_weights
from ti_flax.models.tensors import Tensor
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import open_regular

_GGUF = b"GGUF"
_EMA = "model_ema.diffusion_model"
# A zip, and what torch wrote before it: pickles one after another, or a tar.
_TORCH = (b"PK", b"\x80")
_STEPS = "global_step"
_TAR, _TAR_BYTES = b"ustar", 262
# Those of Stable Diffusion have 2 kB.
_MAX_YAML_BYTES = 2**16
# ComfyUI's scaled float8: a weight is its numbers times the scale beside it. The names
# are those of before and since its release 0.4.
_SCALES = (".scale_weight", ".weight_scale")
_OF_SCALED = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")


class Contents(NamedTuple):
    """Tensors by their keys, not read yet, and what is said of them."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = {}
    # Steps of training that the file states.
    global_step: int | None = None

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose keys begin with the prefix, which is taken off."""
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }


def read(path: Path) -> Contents:
    """The contents of a .safetensors or .ckpt, by its bytes and not by its name.

    Raises:
        UserError: it is neither, damaged, or quantised.
    """
    try:
        with open_regular(path) as file:
            head = file.read(_TAR_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the model's file") from error
    if head.startswith(_GGUF):
        raise UserError(
            f"{path} is a quantised GGUF, not supported; give the same model as "
            ".safetensors in float32, float16, bfloat16 or float8"
        )
    if head.endswith(_TAR):
        raise UserError(
            f"{path} is in torch.save's format from before torch 1.6 (a tar), which is "
            "not read: load it in torch and save it again, best as .safetensors"
        )
    steps, metadata = None, {}
    if head.startswith(_TORCH):
        content = torch_weights.load(path)
        found, steps = torch_weights.tensors_in(path, content), content.get(_STEPS)
    else:
        found, metadata = safetensors_weights.read_all(path)
    tensors = _unscaled(path, {tensor.key: tensor for tensor in found})
    return Contents(path, tensors, metadata, steps if type(steps) is int else None)


def _unscaled(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scaled float8 as the float32 numbers that they mean."""
    made = dict(tensors)
    for key, scale in tensors.items():
        for suffix in filter(key.endswith, _SCALES):
            weight = f"{key.removesuffix(suffix)}.weight"
            if weight in tensors:
                made[weight] = _scaled(path, tensors[weight], scale)
                del made[key]
        if key.endswith(_OF_SCALED):
            del made[key]
    for tensor in made.values():
        if tensor.dtype.kind in "iu" and tensor.key.endswith(".weight"):
            raise UserError(
                f"{path} is quantised ({tensor.dtype} weights), not supported; give "
                "the same model in float32, float16, bfloat16 or float8"
            )
    return made


def _scaled(path: Path, weight: Tensor, scale: Tensor) -> Tensor:
    sides = {1, weight.shape[0]} if weight.shape else {1}
    # One scale for all, or one a row.
    fits = scale.shape in ((), (1,)) or (
        len(scale.shape) == len(weight.shape)
        and scale.shape[0] in sides
        and set(scale.shape[1:]) <= {1}
    )
    if not fits or weight.dtype.itemsize != 1 or weight.dtype.kind in "biu":
        raise UserError(
            f"{path} is quantised in a way that is not supported (scales of shape "
            f"{list(scale.shape)} on {weight.dtype} weights); give the same model in "
            "float32, float16, bfloat16 or float8"
        )
    read = _product(weight.read, scale.read)
    return weight._replace(dtype=np.dtype(np.float32), read=read)


def _product(
    weight: Callable[[], np.ndarray], scale: Callable[[], np.ndarray]
) -> Callable[[], np.ndarray]:
    return lambda: weight().astype(np.float32) * scale().astype(np.float32)


def averaged(contents: Contents, unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's averages, whose keys are those of its weights without the dots.

    Raises `UserError` where some are missing.
    """
    averages = {key: contents.tensors.get(_EMA + key.replace(".", "")) for key in unet}
    missing = [key for key, tensor in averages.items() if tensor is None]
    if missing:
        raise UserError(
            f"ema: {contents.path} has averages (EMA) of {len(unet) - len(missing)} of "
            f"the UNet's {len(unet)} tensors; leave ema out, or give a file with all"
        )
    return {key: tensor for key, tensor in averages.items() if tensor is not None}


def has_averages(contents: Contents) -> bool:
    return any(key.startswith(_EMA) for key in contents.tensors)


def beside(path: Path) -> Path:
    """The YAML file of the same name."""
    return path.with_suffix(".yaml")


def read_beside(path: Path) -> Mapping[str, Any] | None:
    """What the file `beside` says of how the model was trained.

    None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    file = beside(path)
    if not os.path.exists(file):
        return None
    try:
        with open_regular(file, _MAX_YAML_BYTES) as opened:
            content = yaml.safe_load(opened)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: not readable YAML ({one_line(error)}); mend it, or take it away"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{file}: expected the settings of {path.name}, found {shown(content)}; "
            "mend it, or take it away"
        )
    return content
