"""What the families share: a UNet, a KL autoencoder, betas; of most, CLIP."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from ti_flax.diffusion.process import Ddpm
from ti_flax.models import attention, vae
from ti_flax.models.clip_text import ClipTextConfig
from ti_flax.models.family import Family, LatentScale, Part, TextEncoder
from ti_flax.models.unet import UNet
from ti_flax.models.unet_config import UNetConfig, read_sample_size
from ti_flax.runtime.errors import UserError


def clip_encoder(
    name: str, tokenizer: str, module: nn.Module, config: ClipTextConfig
) -> TextEncoder:
    """A text encoder of CLIP's, in the folder `name`."""
    return TextEncoder(
        name,
        tokenizer,
        module,
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        length=config.max_position_embeddings,
    )


def assemble(
    configs: Mapping[str, Mapping[str, Any]],
    net: UNetConfig,
    dtype: DTypeLike,
    plan: attention.Plan,
    classes: Mapping[str, tuple[str, str]],
    **own: Any,
) -> Family:
    """The family with a UNet of these settings; `own` are its further fields.

    Raises `UserError` where UNet and autoencoder do not fit one another.
    """
    auto = vae.Vae(vae.VaeConfig.from_json(configs["vae"]))
    if net.in_channels != auto.config.latent_channels:
        raise UserError(
            f"the unet takes {net.in_channels} channels, the vae makes "
            f"{auto.config.latent_channels}; inpainting and depth models are not "
            "supported, use a text-to-image model"
        )
    return Family(
        denoiser=Part("unet", UNet(net, dtype, plan)),
        autoencoder=Part("vae", auto),
        decoder_params=("decoder", "post_quant_conv"),
        process=Ddpm.from_json(configs["scheduler"]),
        scale=LatentScale(auto.config.scaling_factor),
        sample_posterior=vae.sample_posterior,
        latent_channels=auto.config.latent_channels,
        downscale=auto.config.downscale,
        sample_size=read_sample_size(configs["unet"]),
        classes={
            **classes,
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
        **own,
    )
