"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): CLIP, UNet, KL autoencoder."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ti_flax.models import attention
from ti_flax.models.clip_text import ClipText, ClipTextConfig
from ti_flax.models.family import Conditioning, Family
from ti_flax.models.latent_diffusion import assemble, clip_encoder
from ti_flax.models.unet_config import UNetConfig
from ti_flax.runtime.errors import UserError

PARTS = ("text_encoder", "unet", "vae")


def condition(
    outputs: Mapping[str, Float[Array, "B L D"]], sizes: Int[Array, "B 6"]
) -> Conditioning:
    """The text encoder's last hidden states; pictures' sizes are not told."""
    del sizes
    return (outputs["text_encoder"],)


def make_family(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> Family:
    """The networks that the configurations describe; they must fit one another.

    The UNet is computed in `dtype`, its attention as `plan` says; the rest in float32.

    Raises `UserError` for configurations of another family.
    """
    text = ClipText(ClipTextConfig.from_json(configs["text_encoder"]))
    net, width = UNetConfig.from_json(configs["unet"]), text.config.hidden_size
    if net.cross_attention_dim != width:
        raise UserError(
            f"the unet's cross_attention_dim {net.cross_attention_dim} is not "
            f"the text encoder's hidden_size {width}; use the folders of one model"
        )
    return assemble(
        configs,
        net,
        dtype,
        plan,
        name="sd",
        text_encoders=(clip_encoder("text_encoder", "tokenizer", text, text.config),),
        condition=condition,
        pipeline="StableDiffusionPipeline",
        classes={
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
        },
        optional_parts=("feature_extractor", "safety_checker", "image_encoder"),
    )
