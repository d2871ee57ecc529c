"""Tiny random models as a folder, and the same weights as one file of the web.

The keys are made from those of the folder by the tables of latent diffusion's layout
(block numbers are computed from the number of layers), independently of the reader.
Widths are such that the rules for heads hold: 8 in 1.x, 64 wide in all others.
"""

import copy
import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import sdxl_models
from safetensors.numpy import load_file

from ti_flax.models import bert_tokenizer, clip_tokenizer, families, known
from ti_flax.models.torch_params import param_shapes, save_params, torch_key
from ti_flax.runtime import atomic

Arrays = dict[str, np.ndarray]

# What each relative of SDXL changes of its UNet; depths are smaller than the published.
RELATIVES: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "ssd-1b": {
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
        "transformer_layers_per_block": [1, 1, 2],
    },
    "vega": {
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 2],
    },
    "koala-700m": {
        "mid_block_type": None,
        "transformer_layers_per_block": [0, 2, 3],
    },
    "koala-1b": {"transformer_layers_per_block": [0, 2, 3]},
    "inpainting": {"in_channels": 9},
}
KINDS = ("sd1", "sd2", "ldm", *RELATIVES)
FILES = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
VOCABULARY = 49408
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
}


def configs(kind: str, vocab_size: int = 514) -> known.Configs:
    """Settings of a tiny model with the published ones that no shape tells."""
    published = {"ldm": known.LDM, "sd1": known.SD15, "sd2": known.SD21}
    made = copy.deepcopy(published.get(kind, known.SDXL))
    made["vae"].update(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        layers_per_block=1,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    if kind == "ldm":
        return _ldm_configs(made)
    text = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1}
    made["text_encoder"].update(text, vocab_size=vocab_size, num_hidden_layers=2)
    made["unet"].update(sample_size=16)
    if kind == "sd1":
        made["unet"].update(block_out_channels=[32, 64, 64, 64], cross_attention_dim=64)
        return made
    if kind == "sd2":
        made["text_encoder"].update(num_hidden_layers=23)
        made["unet"].update(
            attention_head_dim=[1, 1, 2, 2],
            block_out_channels=[64, 64, 128, 128],
            cross_attention_dim=64,
        )
        return made
    made["text_encoder"]["eos_token_id"] = 49407
    made["text_encoder_2"].update(
        eos_token_id=49407,
        hidden_size=128,
        intermediate_size=160,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=96,
        vocab_size=vocab_size,
    )
    made["unet"].update(
        attention_head_dim=[1, 1, 2],
        block_out_channels=[64, 64, 128],
        cross_attention_dim=64 + 128,
        layers_per_block=1,
        projection_class_embeddings_input_dim=96 + 6 * 256,
        transformer_layers_per_block=[1, 1, 2],
    )
    made["unet"].update(copy.deepcopy(RELATIVES[kind]))
    return made


def _ldm_configs(made: known.Configs) -> known.Configs:
    made["text_encoder"].update(
        d_model=48,
        encoder_attention_heads=2,
        encoder_ffn_dim=96,
        encoder_layers=2,
        vocab_size=160,
    )
    made["unet"].update(
        block_out_channels=[32, 64, 64, 64], cross_attention_dim=48, sample_size=32
    )
    return made


def small_configs(kind: str) -> known.Configs:
    """Of two levels and one layer a block, with CLIP's vocabulary: for runs."""
    made = configs(kind, VOCABULARY)
    attends, plain = "CrossAttn{}Block2D", "{}Block2D"
    down = [plain, attends] if kind == "sdxl" else [attends, plain]
    made["text_encoder"].update(num_hidden_layers=2)
    made["unet"].update(
        block_out_channels=[32, 64] if kind == "sd1" else [64, 64],
        down_block_types=[block.format("Down") for block in down],
        layers_per_block=1,
        up_block_types=[block.format("Up") for block in reversed(down)],
    )
    if kind != "sd1":
        made["unet"].update(attention_head_dim=[1, 1])
    if kind == "sdxl":
        made["unet"].update(transformer_layers_per_block=[1, 2])
    return made


def write_folder(folder: Path, own: known.Configs) -> None:
    """Writes float32 weights in diffusers' layout, CLIP's tokenizers with them."""
    family = families.make_family({"model_index": {}, **own})
    for part, module in family.parts.items():
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf, part=part: sdxl_models.draw(
                part, torch_key(path), leaf.shape
            ),
            param_shapes(module),
        )
        place = folder / family.folder(part)
        save_params(place, own[part], params, np.dtype(np.float32))
    atomic.write_json(folder / "scheduler" / "scheduler_config.json", own["scheduler"])
    for encoder in family.text_encoders:
        (folder / encoder.tokenizer).mkdir()
        if encoder.pieces == "bert":
            bert_tokenizer.write(folder / encoder.tokenizer)
            continue
        open_clip = own[encoder.name]["hidden_act"] == "gelu"
        pad = "!" if open_clip else clip_tokenizer.END
        clip_tokenizer.write(folder / encoder.tokenizer, pad)
    index = family.model_index(own["scheduler"]["_class_name"])
    atomic.write_json(
        folder / "model_index.json", {**own.get("model_index", {}), **index}
    )


def tensors_of(folder: Path, own: known.Configs) -> Arrays:
    """The weights of a folder under the keys of one file."""
    made: Arrays = {}
    for part, file in FILES.items():
        if part in own:
            arrays = load_file(folder_of(folder, part) / file)
            made |= NETWORKS[part](arrays, own)
    return made


def folder_of(folder: Path, part: str) -> Path:
    """A part's folder, by diffusers' name of it in either pipeline."""
    other = folder / {"text_encoder": "bert", "vae": "vqvae"}.get(part, part)
    return other if other.is_dir() else folder / part


def unet(arrays: Arrays, own: known.Configs) -> Arrays:
    layers = own["unet"]["layers_per_block"]
    return {
        f"model.diffusion_model.{_unet_key(key, layers, arrays)}": array
        for key, array in arrays.items()
    }


_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_key(key: str, layers: int, keys: Iterable[str]) -> str:
    module, leaf = key.rsplit(".", 1)
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    match = re.fullmatch(r"(down|up|mid)_blocks?(?:\.(\d))?\.(\w+)\.(\d)\.(.+)", module)
    assert match, key
    way, b, modules, j, inner = match.groups()
    j = int(j)
    if way == "mid":
        place = f"middle_block.{2 * j if modules == 'resnets' else 1}"
    elif modules == "downsamplers":
        return f"input_blocks.{(int(b) + 1) * (layers + 1)}.0.op.{leaf}"
    elif modules == "upsamplers":
        attends = any(k.startswith(f"up_blocks.{b}.attentions.{layers}.") for k in keys)
        i = int(b) * (layers + 1) + layers
        return f"output_blocks.{i}.{1 + attends}.conv.{leaf}"
    else:
        blocks = "input_blocks" if way == "down" else "output_blocks"
        i = int(b) * (layers + 1) + j + (way == "down")
        place = f"{blocks}.{i}.{int(modules == 'attentions')}"
    if modules == "resnets":
        inner = _RESNET[inner]
    return f"{place}.{inner}.{leaf}"


def vae(arrays: Arrays, own: known.Configs) -> Arrays:
    levels = len(own["vae"]["block_out_channels"])
    made = {}
    for key, array in arrays.items():
        if key.startswith("decoder.up_blocks."):
            b = int(key.split(".")[2])
            rest = key.split(".", 3)[3]
            key = f"decoder.up.{levels - 1 - b}.{rest}"
        key = key.replace("encoder.down_blocks.", "encoder.down.")
        key = re.sub(r"(down|up)\.(\d)\.resnets\.", r"\1.\2.block.", key)
        key = key.replace("downsamplers.0.conv", "downsample.conv")
        key = key.replace("upsamplers.0.conv", "upsample.conv")
        for j in (0, 1):
            key = key.replace(f"mid_block.resnets.{j}.", f"mid.block_{j + 1}.")
        attention = "mid_block.attentions.0."
        if attention in key and array.ndim == 2:
            array = array[:, :, None, None]
        key = key.replace(f"{attention}group_norm", "mid.attn_1.norm")
        key = key.replace(f"{attention}to_out.0", "mid.attn_1.proj_out")
        key = re.sub(rf"{re.escape(attention)}to_([qkv])", r"mid.attn_1.\1", key)
        key = key.replace("conv_shortcut", "nin_shortcut")
        made["first_stage_model." + key.replace("conv_norm_out", "norm_out")] = array
    return made


def text_encoder(arrays: Arrays, own: known.Configs) -> Arrays:
    if own["text_encoder"]["model_type"] == "ldmbert":
        return x_transformers(arrays)
    if own["text_encoder"]["hidden_act"] == "gelu":
        return open_clip(arrays, "cond_stage_model.model.", width=64, extra_layer=23)
    first = "conditioner.embedders.0" if "text_encoder_2" in own else "cond_stage_model"
    return {f"{first}.transformer.{key}": array for key, array in arrays.items()}


def x_transformers(arrays: Arrays) -> Arrays:
    """LDMBert's keys as those of the transformer that it was made from."""
    top = {
        "model.embed_tokens": "token_emb",
        "model.embed_positions": "pos_emb.emb",
        "model.layer_norm": "norm",
    }
    inner = {
        "self_attn_layer_norm": (0, "0"),
        "self_attn.q_proj": (0, "1.to_q"),
        "self_attn.k_proj": (0, "1.to_k"),
        "self_attn.v_proj": (0, "1.to_v"),
        "self_attn.out_proj": (0, "1.to_out"),
        "final_layer_norm": (1, "0"),
        "fc1": (1, "1.net.0.0"),
        "fc2": (1, "1.net.2"),
    }
    made: Arrays = {}
    for key, array in arrays.items():
        module, leaf = key.rsplit(".", 1)
        name = top.get(module)
        if name is None:
            _, _, layer, rest = module.split(".", 3)
            odd, place = inner[rest]
            name = f"attn_layers.layers.{2 * int(layer) + odd}.{place}"
        made[f"cond_stage_model.transformer.{name}.{leaf}"] = array
    return made


def text_encoder_2(arrays: Arrays, own: known.Configs) -> Arrays:
    return open_clip(arrays, "conditioner.embedders.1.model.", width=128)


_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(
    arrays: Arrays, prefix: str, width: int, extra_layer: int | None = None
) -> Arrays:
    """transformers' keys as open_clip's; an extra layer is noise that nobody reads."""
    made: Arrays = {}
    for key, array in arrays.items():
        key = key.removeprefix("text_model.")
        if key == "text_projection.weight":
            made["text_projection"] = np.ascontiguousarray(array.T)
        elif key == "embeddings.token_embedding.weight":
            made["token_embedding.weight"] = array
        elif key == "embeddings.position_embedding.weight":
            made["positional_embedding"] = array
        elif key.startswith("final_layer_norm."):
            made[key.replace("final_layer_norm", "ln_final")] = array
        elif ".q_proj." in key:
            thirds = [arrays[f"text_model.{key.replace('.q_proj.', n)}"] for n in _QKV]
            layer, leaf = key.split(".")[2], key.rsplit(".", 1)[1]
            name = f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"
            made[name] = np.concatenate(thirds)
        elif ".k_proj." not in key and ".v_proj." not in key:
            _, _, layer, rest = key.split(".", 3)
            module, leaf = rest.rsplit(".", 1)
            made[f"transformer.resblocks.{layer}.{_LAYER[module]}.{leaf}"] = array
    if extra_layer is not None:
        first = "transformer.resblocks.0."
        for key in [key for key in made if key.startswith(first)]:
            name = f"transformer.resblocks.{extra_layer}.{key.removeprefix(first)}"
            made[name] = made[key] + np.float32(1)
        made["text_projection"] = np.ones((width, width), np.float32)
    made["logit_scale"] = np.array(4.6, np.float32)
    return {f"{prefix}{key}": array for key, array in made.items()}


_QKV = (".q_proj.", ".k_proj.", ".v_proj.")
NETWORKS = {
    "text_encoder": text_encoder,
    "text_encoder_2": text_encoder_2,
    "unet": unet,
    "vae": vae,
}


def others(kind: str) -> Arrays:
    """What files of the web have besides, and no network reads."""
    schedule = np.linspace(0, 1, 10, dtype=np.float32)
    made = {
        "alphas_cumprod": schedule,
        "betas": schedule,
        "logvar": schedule,
        "model_ema.decay": schedule[:1].reshape(()),
        "model_ema.num_updates": np.zeros((), np.int64),
        "first_stage_model.loss.discriminator.main.0.weight": schedule,
    }
    if kind == "ldm":
        for leaf in ("weight", "bias"):
            made[f"cond_stage_model.transformer.to_logits.{leaf}"] = schedule
    elif kind != "sd2":
        first = "cond_stage_model" if kind == "sd1" else "conditioner.embedders.0"
        name = f"{first}.transformer.text_model.embeddings.position_ids"
        # Some merges averaged even these, in half precision.
        made[name] = np.arange(77, dtype=np.float32)[None] * 0.5
    return made


def averages(arrays: Arrays) -> Arrays:
    """EMA weights beside the UNet's own, by latent diffusion's names of buffers."""
    prefix = "model.diffusion_model."
    return {
        "model_ema.diffusion_model" + key.removeprefix(prefix).replace(".", ""): array
        + np.float32(0.5)
        for key, array in arrays.items()
        if key.startswith(prefix)
    }


def save(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes safetensors of any type of numbers, in the order given."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {}
    if metadata is not None:
        header["__metadata__"] = dict(metadata)
    end = 0
    for key, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[key] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
    return path
