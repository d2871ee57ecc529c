"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022): CLIP, UNet, KL autoencoder."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ti_flax.diffusion.process import Ddpm
from ti_flax.models import attention, clip_text, unet, unet_config, vae
from ti_flax.models.family import Conditioning, Family, LatentScale, Part, TextEncoder
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
    text_config = clip_text.ClipTextConfig.from_json(configs["text_encoder"])
    text = clip_text.ClipText(text_config)
    net = unet.UNet(unet_config.UNetConfig.from_json(configs["unet"]), dtype, plan)
    auto = vae.Vae(vae.VaeConfig.from_json(configs["vae"]))
    _check_fit(text.config, net.config, auto.config)
    return Family(
        name="sd",
        text_encoders=(
            TextEncoder(
                "text_encoder",
                "tokenizer",
                text,
                vocab_size=text.config.vocab_size,
                width=text.config.hidden_size,
                length=text.config.max_position_embeddings,
            ),
        ),
        denoiser=Part("unet", net),
        autoencoder=Part("vae", auto),
        decoder_params=("decoder", "post_quant_conv"),
        condition=condition,
        process=Ddpm.from_json(configs["scheduler"]),
        scale=LatentScale(auto.config.scaling_factor),
        sample_posterior=vae.sample_posterior,
        latent_channels=auto.config.latent_channels,
        downscale=auto.config.downscale,
        sample_size=unet_config.read_sample_size(configs["unet"]),
        pipeline="StableDiffusionPipeline",
        classes={
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
        optional_parts=("feature_extractor", "safety_checker", "image_encoder"),
    )


def _check_fit(
    text: clip_text.ClipTextConfig, net: unet_config.UNetConfig, auto: vae.VaeConfig
) -> None:
    if net.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"the unet's cross_attention_dim {net.cross_attention_dim} is not "
            f"the text encoder's hidden_size {text.hidden_size}; use the "
            "folders of one model"
        )
    if net.in_channels != auto.latent_channels:
        raise UserError(
            f"the unet takes {net.in_channels} channels, the vae makes "
            f"{auto.latent_channels}; inpainting and depth models are not "
            "supported, use a text-to-image model"
        )
