"""What a single file is, where it is no model that can be read."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from ti_flax.runtime.errors import UserError, listed

_BASE = "give the model that it is used with"
_FAMILY = "give a model of Stable Diffusion 1.x, 2.x or SDXL"
_PICTURES = "give a text-to-image model"
_NUMBERS = "give the same model in float32, float16, bfloat16 or float8"
# In front of the denoiser's keys, where there is anything.
_DENOISER = r"(model\.diffusion_model\.|diffusion_model\.|transformer\.|)"


class _Sign(NamedTuple):
    """The beginning of a key; what a file with such a key is; what to give instead."""

    keys: str
    told: str
    instead: str


# Whatever else is in the file.
_SIGNS = (
    _Sign(r".*\.(absmax|quant_map|quant_state\b)", "quantised (nf4 or int8)", _NUMBERS),
    _Sign(r"control_model\.", "a ControlNet", _BASE),
    _Sign(r"(model\.)?depth_model\.", "a depth-to-image model", _PICTURES),
    _Sign(
        r"(embedder\.model\.|noise_augmentor\.)",
        "an unCLIP model, which reads pictures",
        _PICTURES,
    ),
    _Sign(r"edm_vpred\.", "CosXL (EDM noise)", "give an SDXL model"),
    _Sign(
        _DENOISER + r"(input_blocks\.\d+\.\d+\.time_|.*\.time_stack\.)",
        "a video model",
        _PICTURES,
    ),
    _Sign(_DENOISER + r"double_(stream_)?blocks\.", "FLUX or a relative", _FAMILY),
    _Sign(_DENOISER + r"joint_(transformer_)?blocks\.", "Stable Diffusion 3", _FAMILY),
    _Sign(
        _DENOISER + r"down_blocks\.\d+\.\d+\.(channelwise|depthwise)",
        "Stable Cascade",
        _FAMILY,
    ),
)
# Where there is no UNet in the keys of latent diffusion.
_WITHOUT_UNET = (
    _Sign(
        r".*(lora_(up|down|mid|[ABEab])\b|lora\.(up|down)\.|hada_w\d|lokr_w\d"
        r"|oft_(blocks|diag)|dora_scale)|lora_(unet|te\d?)_",
        "a LoRA",
        _BASE,
    ),
    _Sign(
        r"(emb_params|emp_params|clip_[gl]|string_to_(param|token)\b.*|bundle_emb\..*)$",
        "a learned word",
        "give the model, and this file as initializer_embedding or --embedding",
    ),
    _Sign(r"(image_proj|ip_adapter)\.", "an IP-Adapter", _BASE),
    _Sign(
        r"(controlnet_|lllite_|input_hint_block\.|.*\.lllite_)", "a ControlNet", _BASE
    ),
    _Sign(r"(adapter\.)?body\.\d+\.", "a T2I-Adapter", _BASE),
    _Sign(r".*\bmotion_modules\.", "a motion module of AnimateDiff", _BASE),
    _Sign(
        r"(down_blocks|up_blocks|mid_block)\.",
        "the file of a UNet in diffusers' layout",
        "give the folder that has it in its folder unet",
    ),
    _Sign(
        _DENOISER + r"(transformer_blocks|single_transformer_blocks|blocks|layers"
        r"|cap_embedder)\.",
        "a diffusion transformer",
        _FAMILY,
    ),
    _Sign(
        r"((first_stage_model|vae)\.)?(en|de)coder\.(conv_in|down|up|mid)",
        "a VAE alone",
        "give the model, and this file as vae",
    ),
    _Sign(
        r"(text_model|transformer\.resblocks|cond_stage_model|conditioner|text_encoders"
        r"|shared|encoder\.block)\b",
        "a text encoder alone",
        "give the model, and this file as text_encoder",
    ),
)


def check(path: Path, keys: Collection[str], has_unet: bool) -> None:
    """Raises `UserError` where the keys are not those of a text-to-image model."""
    _refuse(path, keys, _SIGNS)
    if not has_unet:
        _refuse(path, keys, _WITHOUT_UNET)
        found = listed(keys) or "no tensors"
        raise UserError(
            f"{path}: expected a model in one file, with a UNet's tensors such as "
            f"model.diffusion_model.input_blocks.0.0.weight, found {found}; {_FAMILY}"
        )


def _refuse(path: Path, keys: Collection[str], signs: Iterable[_Sign]) -> None:
    for sign in signs:
        pattern = re.compile(sign.keys)
        if any(pattern.match(key) for key in keys):
            raise UserError(f"{path} is {sign.told}, not supported; {sign.instead}")
