"""Tiny random Stable Diffusion models, made by diffusers and transformers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

KINDS = ("sd1", "sd2")
VOCAB_SIZE, WIDTH = 1000, 32
EMBEDDING_SCALE = 0.02

_TEXT = {
    "sd1": {"hidden_act": "quick_gelu"},
    "sd2": {"hidden_act": "gelu"},
}
_UNET: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (16, 24),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "use_linear_projection": False,
    },
    "sd2": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
    },
}
# The published repositories name these schedulers; training takes DDPM on their betas.
SCHEDULERS = {
    "sd1": diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ),
    "sd2": diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ),
}

# Layers that write to a residual stream are made small, so that the norms which read it
# see a variance of about 1e-3: an epsilon of 1e-5 in place of 1e-6 then shows.
_INTO_STREAM = (
    "conv_in",
    "conv2",
    "proj_in",
    "proj_out",
    "to_out.0",
    "ff.net.2",
    "out_proj",
    "mlp.fc2",
)
_STREAM_SCALE = 0.03


def make_models(
    kind: str, rng: np.random.Generator, **unet_settings: Any
) -> tuple[
    transformers.CLIPTextModel,
    diffusers.UNet2DConditionModel,
    diffusers.AutoencoderKL,
]:
    """Tiny models with the structure of Stable Diffusion 1.x or 2.x."""
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=VOCAB_SIZE - 2,
            eos_token_id=VOCAB_SIZE - 1,
            **_TEXT[kind],
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        **_UNET[kind] | unet_settings,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    models = text_encoder, unet, vae
    for model in models:
        model.eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(draw_parameter(name, parameter.shape, rng))
    return models


def draw_parameter(name: str, shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Every parameter random, norms and biases too: ones and zeros would hide errors.

    Drawn by numpy, whose numbers do not depend on the version of torch.
    """
    layer, kind = name.rsplit(".", 1)
    noise = rng.standard_normal(shape)
    if layer.endswith("_embedding"):
        values = EMBEDDING_SCALE * noise
    elif kind == "weight" and len(shape) == 1:
        values = 1 + 0.2 * noise
    else:
        scale = 0.1 if kind == "bias" else np.prod(shape[1:]) ** -0.5
        values = noise * scale * (_STREAM_SCALE if layer.endswith(_INTO_STREAM) else 1)
    return to_tensor(values)


def save_model(kind: str, folder: Path, *models: nn.Module) -> None:
    """Writes the folder layout of diffusers, without a tokenizer."""
    text_encoder, unet, vae = models
    parts = {
        "scheduler": SCHEDULERS[kind],
        "text_encoder": text_encoder,
        "unet": unet,
        "vae": vae,
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def to_tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
