"""Tiny random models of SDXL and its relatives, as folders; PyTorch is not needed.

Every parameter is drawn from its own name, so that a folder is the same wherever it is
written, and what PyTorch made of it can be recorded without it.
"""

import copy
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ti_flax.models import families, known, random_model
from ti_flax.models.torch_params import param_shapes, save_params, torch_key
from ti_flax.runtime import atomic

# What each changes of the UNet; depths are smaller than in the published models.
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "ssd-1b": {
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[2, 1, 3], 1],
        "transformer_layers_per_block": [1, 1],
    },
    "vega": {"mid_block_type": "UNetMidBlock2D"},
    "koala-700m": {"mid_block_type": None, "transformer_layers_per_block": [0, 2]},
    "koala-1b": {"transformer_layers_per_block": [0, 3]},
    "inpainting": {"in_channels": 9},
    "playground": {},
}
KINDS = tuple(UNETS)
EOS = 513


def configs(kind: str, eos: int = EOS) -> known.Configs:
    """Settings of each part; `eos` is 2 in the Hub's files."""
    made = copy.deepcopy(known.TINY_XL)
    made["unet"].update(UNETS[kind])
    if kind == "playground":
        made["scheduler"] = known.PLAYGROUND["scheduler"]
        made["vae"].update(known.PLAYGROUND["vae"])
    for name in ("text_encoder", "text_encoder_2"):
        made[name].update(eos_token_id=eos, num_hidden_layers=3)
    return made


def write(kind: str, folder: Path, eos: int = EOS) -> None:
    """Writes the folder of a model, tokenizers included."""
    own = configs(kind, eos)
    family = families.make_family(own)
    for part, module in family.parts.items():
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, part=part: draw(part, torch_key(path), leaf.shape),
            param_shapes(module),
        )
        save_params(folder / part, own[part], params, np.dtype(np.float32))
    atomic.write_json(folder / "scheduler" / "scheduler_config.json", own["scheduler"])
    for encoder in family.text_encoders:
        random_model.write_tokenizer(folder / encoder.tokenizer)
    index = {
        **own["model_index"],
        **family.model_index(own["scheduler"]["_class_name"]),
    }
    atomic.write_json(folder / "model_index.json", index)


def draw(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms and biases are random too: ones and zeros would hide errors."""
    noise = np.random.default_rng(zlib.crc32(f"{part}/{name}".encode()))
    values = noise.standard_normal(shape)
    if name.endswith("embedding.weight"):
        values *= 0.02
    elif name.endswith(".bias"):
        values *= 0.1
    elif len(shape) == 1:
        values = 1 + 0.2 * values
    else:
        values *= np.prod(shape[:-1]) ** -0.5
    return values.astype(np.float32)
