"""Tensors of a single file under the keys of diffusers and transformers.

A single file has the keys of the code that the model was trained with: latent
diffusion's UNet and autoencoder, OpenAI's or open_clip's text encoder (Rombach et al.
2022; github.com/Stability-AI/generative-models). Every function takes one network's
tensors by their keys, the part's prefix taken off. A key that it does not know keeps
its name, so that loading tells it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ti_flax.models.tensors import Tensor

Tensors = Mapping[str, Tensor]

_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d{1,3})\.(.+)")
_VAE = (
    (r"\bmid\.block_1\b", "mid_block.resnets.0"),
    (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\.norm\b", "mid_block.attentions.0.group_norm"),
    (r"\bmid\.attn_1\.([qkv])\b", r"mid_block.attentions.0.to_\1"),
    (r"\bmid\.attn_1\.proj_out\b", "mid_block.attentions.0.to_out.0"),
    (r"\bdown\.(\d{1,3})\.block\b", r"down_blocks.\1.resnets"),
    (r"\bdown\.(\d{1,3})\.downsample\b", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d{1,3})\.block\b", r"up_blocks.\1.resnets"),
    (r"\bup\.(\d{1,3})\.upsample\b", r"up_blocks.\1.upsamplers.0"),
    (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"\bnorm_out\b", "conv_norm_out"),
)
_VAE_UP = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.")
_VAE_ATTENTION = re.compile(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")
# Beside the networks' own, in files of every age.
_VAE_OTHERS = ("loss.", "model_ema.")
_TEXT_OTHERS = ("embeddings.position_ids", "logit_scale", "attn_mask")
_OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)\.(weight|bias)")
_OPEN_CLIP_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# x-transformers counts attention and feed-forward layers in turn.
_BERT_LAYER = re.compile(r"attn_layers\.layers\.(\d{1,3})\.(.+)\.(weight|bias)")
_BERT_MODULES = (
    {
        "0": "self_attn_layer_norm",
        "1.to_q": "self_attn.q_proj",
        "1.to_k": "self_attn.k_proj",
        "1.to_v": "self_attn.v_proj",
        "1.to_out": "self_attn.out_proj",
    },
    {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"},
)
_BERT = {
    "token_emb.weight": "embed_tokens.weight",
    "pos_emb.emb.weight": "embed_positions.weight",
    "norm.weight": "layer_norm.weight",
    "norm.bias": "layer_norm.bias",
}
_IN_PROJ = re.compile(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)")


def unet(tensors: Tensors) -> Iterator[Tensor]:
    """A UNet of `input_blocks`, `middle_block` and `output_blocks`."""
    places = _unet_places(tensors)
    for key, tensor in tensors.items():
        yield tensor._replace(key=_unet_key(key, places))


def vae(tensors: Tensors) -> Iterator[Tensor]:
    """An autoencoder; its attention, 1x1 convolutions there, is linear here."""
    own = {
        key: tensor
        for key, tensor in tensors.items()
        if not key.startswith(_VAE_OTHERS)
    }
    # Latent diffusion counts the decoder's levels from the pixels.
    from_pixels = any(key.startswith("decoder.up.") for key in own)
    renamed = [(_replaced(key, _VAE), tensor) for key, tensor in own.items()]
    found = [_VAE_UP.match(key) for key, _ in renamed]
    last = max((int(match[1]) for match in found if match), default=0)
    for (key, tensor), match in zip(renamed, found, strict=True):
        if match and from_pixels:
            key = f"decoder.up_blocks.{last - int(match[1])}.{key[match.end() :]}"
        if _VAE_ATTENTION.search(key):
            tensor = _squeezed(tensor)
        yield tensor._replace(key=key)


def clip(tensors: Tensors, projected: bool) -> Iterator[Tensor]:
    """A text encoder under transformers' keys, those of its oldest files included.

    What projects the pooled text is left out of one that is not `projected`.
    """
    for key, tensor in tensors.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            if projected:
                yield tensor._replace(key=name)
        elif not name.startswith(_TEXT_OTHERS):
            yield tensor._replace(key=f"text_model.{name}")


def open_clip(
    tensors: Tensors, projected: bool, unused_layer: int | None = None
) -> Iterator[Tensor]:
    """A text encoder under open_clip's keys; `unused_layer` is left out.

    Its `in_proj` holds the weights of queries, keys and values in turn, its
    `text_projection` is the transposed of transformers'.
    """
    for key, tensor in tensors.items():
        layer = _OPEN_CLIP_LAYER.fullmatch(key) or _IN_PROJ.fullmatch(key)
        if key.startswith(_TEXT_OTHERS):
            continue
        if layer and unused_layer == int(layer[1]):
            continue
        if key in ("text_projection", "text_projection.weight"):
            if projected:
                yield _projection(key, tensor)
        else:
            for part in _open_clip_tensor(key, tensor):
                yield part._replace(key=f"text_model.{part.key}")


def ldm_bert(tensors: Tensors) -> Iterator[Tensor]:
    """The text encoder of latent diffusion under x-transformers' keys.

    What guesses words is left out.
    """
    for key, tensor in tensors.items():
        name = _BERT.get(key, key)
        if match := _BERT_LAYER.fullmatch(key):
            layer, feeds_forward = divmod(int(match[1]), 2)
            module = _BERT_MODULES[feeds_forward].get(match[2], match[2])
            name = f"layers.{layer}.{module}.{match[3]}"
        if not key.startswith("to_logits."):
            yield tensor._replace(key=f"model.{name}")


def _open_clip_tensor(key: str, tensor: Tensor) -> Iterable[Tensor]:
    if key in _OPEN_CLIP:
        return [tensor._replace(key=_OPEN_CLIP[key])]
    match = _IN_PROJ.fullmatch(key)
    if match and tensor.shape and tensor.shape[0] % 3 == 0:
        return _thirds(tensor, f"encoder.layers.{match[1]}.self_attn", match[2])
    match = _OPEN_CLIP_LAYER.fullmatch(key)
    if match and match[2] in _OPEN_CLIP_MODULES:
        module = _OPEN_CLIP_MODULES[match[2]]
        key = f"encoder.layers.{match[1]}.{module}.{match[3]}"
    return [tensor._replace(key=key)]


def _unet_places(keys: Iterable[str]) -> dict[str, str]:
    """diffusers' module for each of the UNet's blocks, such as `input_blocks.1.0`.

    Blocks are counted along the way through the network: a level ends where the
    picture's size changes.
    """
    inside: dict[str, dict[int, set[str]]] = {
        "input_blocks": defaultdict(set),
        "output_blocks": defaultdict(set),
    }
    for key in keys:
        if match := _BLOCK.fullmatch(key):
            names = inside[match[1]][int(match[2])]
            names.add(".".join(match[3].split(".")[:2]))
    places = dict(_UNET)
    level = layer = 0
    for i in sorted(set(inside["input_blocks"]) - {0}):
        if "0.op" in inside["input_blocks"][i]:
            downsampler = f"down_blocks.{level}.downsamplers.0.conv"
            places[f"input_blocks.{i}.0.op"] = downsampler
            level, layer = level + 1, 0
            continue
        places[f"input_blocks.{i}.0"] = f"down_blocks.{level}.resnets.{layer}"
        places[f"input_blocks.{i}.1"] = f"down_blocks.{level}.attentions.{layer}"
        layer += 1
    level = layer = 0
    for i in sorted(inside["output_blocks"]):
        places[f"output_blocks.{i}.0"] = f"up_blocks.{level}.resnets.{layer}"
        places[f"output_blocks.{i}.1"] = f"up_blocks.{level}.attentions.{layer}"
        layer += 1
        # The upsampler follows the attention, where there is one.
        for name in {"1.conv", "2.conv"} & inside["output_blocks"][i]:
            upsampler = f"up_blocks.{level}.upsamplers.0.conv"
            places[f"output_blocks.{i}.{name}"] = upsampler
            level, layer = level + 1, 0
    return places


def _unet_key(key: str, places: Mapping[str, str]) -> str:
    names = key.split(".")
    for length in range(min(4, len(names) - 1), 0, -1):
        place = places.get(".".join(names[:length]))
        if place is not None:
            rest = ".".join(names[length:-1])
            inner = _RESNET.get(rest, rest) if ".resnets." in place else rest
            return ".".join(filter(None, (place, inner, names[-1])))
    return key


def _replaced(key: str, patterns: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        key = re.sub(pattern, replacement, key)
    return key


def _squeezed(tensor: Tensor) -> Tensor:
    """[out, in, 1, 1] or [out, in, 1] as [out, in]."""
    if len(tensor.shape) <= 2 or set(tensor.shape[2:]) != {1}:
        return tensor
    shape = tensor.shape[:2]
    return tensor._replace(shape=shape, read=lambda: tensor.read().reshape(shape))


def _projection(key: str, tensor: Tensor) -> Tensor:
    """By the key's name: the matrix is square, and no shape tells."""
    name = "text_projection.weight"
    if key == name:
        return tensor._replace(key=name)
    return Tensor(name, tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)


def _thirds(tensor: Tensor, place: str, leaf: str) -> Iterator[Tensor]:
    """The rows of queries, keys and values, each a third of the first axis."""
    rows = tensor.shape[0] // 3
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):

        def read(begin: int = i * rows) -> np.ndarray:
            return tensor.read()[begin : begin + rows]

        shape = (rows, *tensor.shape[1:])
        yield Tensor(f"{place}.{name}.{leaf}", shape, tensor.dtype, read)
