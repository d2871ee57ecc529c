"""The settings of a network, told from the shapes of its tensors.

Shapes tell widths, depths and what is there at all; what they cannot tell (numbers of
heads, activations, the scale of latents) is that of the published models: 8 heads in
Stable Diffusion 1.x and latent diffusion with BERT, heads of 64 in all others and in
the text encoders.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ti_flax.models import known
from ti_flax.models.tensors import Tensor
from ti_flax.runtime.errors import UserError

Config = dict[str, Any]

# What single files are of: the published model with the settings that shapes lack.
PUBLISHED: dict[str, known.Configs] = {
    "ldm": known.LDM,
    "sd1": known.SD15,
    "sd2": known.SD21,
    "sdxl": known.SDXL,
}
_HEAD_WIDTH = 64
# Width of the sinusoids of one of a picture's sizes.
_SIZE_WIDTH = 256
# Any number serves where no residual block attends.
_NO_DEPTH = 1
_EOS = 49407
# Beside the networks of Playground v2.5: what its VAE's settings have.
_LATENTS = {"latents_mean": "edm_mean", "latents_std": "edm_std"}
_MOST_CHANNELS = 64


class Shapes:
    """The shapes of a network's tensors, by the keys of diffusers."""

    def __init__(self, place: str, part: str, tensors: Iterable[Tensor]) -> None:
        self._place, self._part = place, part
        self._shapes = {tensor.key: tensor.shape for tensor in tensors}

    def __contains__(self, key: str) -> bool:
        return key in self._shapes

    def size(self, key: str, axis: int) -> int:
        """The length of an axis. Raises `UserError` where the tensor has none."""
        shape = self._shapes.get(key)
        if shape is None or not axis < len(shape):
            found = "none" if shape is None else f"one of shape {list(shape)}"
            raise UserError(
                f"{self._place}: expected a tensor {key} of the {self._part}, found "
                f"{found}; the file is damaged or was put together wrongly: get it "
                "again"
            )
        return shape[axis]

    def rank(self, key: str) -> int:
        return len(self._shapes[key])

    def first(self, pattern: str) -> str | None:
        """The first key that is the pattern."""
        return next((key for key in self._shapes if re.fullmatch(pattern, key)), None)

    def count(self, before: str) -> int:
        """Modules in a list: one more than the highest number behind `before`."""
        found = re.compile(re.escape(before) + r"(\d{1,3})\.")
        matches = filter(None, map(found.match, self._shapes))
        return max((int(match[1]) + 1 for match in matches), default=0)


def kind_of(unet: Shapes) -> str:
    """Which of `PUBLISHED` a UNet is of, whatever its widths."""
    if "add_embedding.linear_1.weight" in unet:
        return "sdxl"
    key = unet.first(r".+\.attentions\.0\.proj_in\.weight")
    return "sd1" if key is None or unet.rank(key) == 4 else "sd2"


def kind_of_settings(unet: Mapping[str, Any]) -> str:
    """The same, by `unet/config.json`."""
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def unet(shapes: Shapes, kind: str) -> Config:
    """`unet/config.json`."""
    levels = max(1, shapes.count("down_blocks."))
    widths = [
        shapes.size(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)
    ]
    layers = max(1, shapes.count("down_blocks.0.resnets."))
    attends = shapes.first(r".+\.attn2\.to_k\.weight")
    projects = shapes.first(r".+\.attentions\.\d+\.proj_in\.weight")
    return {
        **PUBLISHED[kind]["unet"],
        **_depths(shapes, levels, layers),
        **_added(shapes),
        "attention_head_dim": 8
        if kind in ("ldm", "sd1")
        else [max(1, width // _HEAD_WIDTH) for width in widths],
        "block_out_channels": widths,
        "cross_attention_dim": shapes.size(attends, 1)
        if attends
        else PUBLISHED[kind]["unet"]["cross_attention_dim"],
        "in_channels": shapes.size("conv_in.weight", 1),
        "layers_per_block": layers,
        "out_channels": shapes.size("conv_out.weight", 0),
        "use_linear_projection": projects is not None and shapes.rank(projects) == 2,
    }


def vae(shapes: Shapes, kind: str) -> Config:
    """`vae/config.json`."""
    levels = max(1, shapes.count("encoder.down_blocks."))
    return {
        **PUBLISHED[kind]["vae"],
        "block_out_channels": [
            shapes.size(f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0)
            for i in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "layers_per_block": max(1, shapes.count("encoder.down_blocks.0.resnets.")),
        "out_channels": shapes.size("decoder.conv_out.weight", 0),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_encoder(shapes: Shapes, kind: str, part: str) -> Config:
    """`text_encoder/config.json`, or that of `text_encoder_2`."""
    if kind == "ldm":
        return _ldm_bert(shapes)
    inside = "text_model.embeddings"
    width = shapes.size(f"{inside}.token_embedding.weight", 1)
    first = "text_model.encoder.layers.0"
    config = {
        **PUBLISHED[kind][part],
        "hidden_size": width,
        "intermediate_size": shapes.size(f"{first}.mlp.fc1.weight", 0),
        "max_position_embeddings": shapes.size(
            f"{inside}.position_embedding.weight", 0
        ),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "num_hidden_layers": shapes.count("text_model.encoder.layers."),
        "vocab_size": shapes.size(f"{inside}.token_embedding.weight", 0),
    }
    if part == "text_encoder_2":
        config["projection_dim"] = shapes.size("text_projection.weight", 0)
    if kind == "sdxl":
        # With the published 2, transformers pools at a learned word.
        config["eos_token_id"] = _EOS
    return config


def playground(tensors: Mapping[str, Tensor]) -> dict[str, Config]:
    """What Playground v2.5 has in place of SDXL's settings, by part; else nothing."""
    found = {name: tensors.get(key) for name, key in _LATENTS.items()}
    read: Config = {}
    for name, tensor in found.items():
        if tensor is None or math.prod(tensor.shape) > _MOST_CHANNELS:
            return {}
        read[name] = tensor.read().astype(np.float64).reshape(-1).tolist()
    own = known.PLAYGROUND
    return {"scheduler": own["scheduler"], "vae": {**own["vae"], **read}}


def _ldm_bert(shapes: Shapes) -> Config:
    """`bert/config.json`."""
    first = "model.layers.0"
    heads = shapes.size(f"{first}.self_attn.q_proj.weight", 0) // _HEAD_WIDTH
    return {
        **PUBLISHED["ldm"]["text_encoder"],
        "d_model": shapes.size("model.embed_tokens.weight", 1),
        "encoder_attention_heads": max(1, heads),
        "encoder_ffn_dim": shapes.size(f"{first}.fc1.weight", 0),
        "encoder_layers": shapes.count("model.layers."),
        "max_position_embeddings": shapes.size("model.embed_positions.weight", 0),
        "vocab_size": shapes.size("model.embed_tokens.weight", 0),
    }


def _depths(shapes: Shapes, levels: int, layers: int) -> Config:
    """Which blocks there are, and how many transformer blocks in each."""
    down = [_of_level(shapes, f"down_blocks.{i}", layers) for i in range(levels)]
    up = [_of_level(shapes, f"up_blocks.{i}", layers + 1) for i in range(levels)]
    middle = shapes.count("mid_block.attentions.0.transformer_blocks.")
    # The middle block has as many as the last level says, which may not attend itself.
    unused = [_NO_DEPTH] * (levels - 1) + [middle or _NO_DEPTH]
    said = [
        _same(own) if any(own) else none for own, none in zip(down, unused, strict=True)
    ]
    config: Config = {
        "down_block_types": [
            "CrossAttnDownBlock2D" if any(own) else "DownBlock2D" for own in down
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if any(own) else "UpBlock2D" for own in up
        ],
        "transformer_layers_per_block": 1 if set(map(str, said)) == {"1"} else said,
    }
    if "mid_block.resnets.1.conv1.weight" not in shapes:
        alone = "mid_block.resnets.0.conv1.weight" in shapes
        config["mid_block_type"] = "UNetMidBlock2D" if alone else None
    mirrored = [[own[-1]] * (layers + 1) for own in reversed(down)]
    if up != mirrored:
        config["reverse_transformer_layers_per_block"] = [
            _same(own) if any(own) else _NO_DEPTH for own in up
        ]
    return config


def _of_level(shapes: Shapes, level: str, resnets: int) -> list[int]:
    return [
        shapes.count(f"{level}.attentions.{j}.transformer_blocks.")
        for j in range(resnets)
    ]


def _same(depths: list[int]) -> int | list[int]:
    """One number where all blocks of a level have it, as published files say it."""
    return depths[0] if len(set(depths)) == 1 else depths


def _added(shapes: Shapes) -> Config:
    """What the UNet is told besides time and text."""
    if "class_embedding.weight" in shapes:
        classes = shapes.size("class_embedding.weight", 0)
        return {"num_class_embeds": classes}
    if "add_embedding.linear_1.weight" not in shapes:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_WIDTH,
        "projection_class_embeddings_input_dim": shapes.size(
            "add_embedding.linear_1.weight", 1
        ),
    }
