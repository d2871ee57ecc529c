"""What the families share: a UNet, a KL autoencoder, betas; of most, CLIP."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from ti_flax.diffusion.edm import read_process
from ti_flax.diffusion.process import Ddpm
from ti_flax.models import attention, inpainting, vae
from ti_flax.models.clip_text import ClipTextConfig
from ti_flax.models.family import Family, LatentScale, Part, TextEncoder
from ti_flax.models.unet import UNet
from ti_flax.models.unet_config import UNetConfig, read_sample_size
from ti_flax.runtime.errors import UserError

_DISTILLED = (
    "unet: time_cond_proj_dim says that the model was distilled (LCM), which leaves no "
    "noise to learn from; train on the base model that it was made of, and give "
    "generate the word with this one"
)


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
    channels = auto.config.latent_channels
    process = read_process(configs["scheduler"])
    inpaints = net.in_channels == inpainting.channels_of(channels)
    if net.in_channels != channels and not (inpaints and isinstance(process, Ddpm)):
        raise UserError(
            f"the unet takes {net.in_channels} channels, the vae makes {channels}; "
            "models that read depth or a picture are not supported, use a "
            "text-to-image or an inpainting model"
        )
    family = Family(
        denoiser=Part("unet", UNet(net, dtype, plan)),
        autoencoder=Part("vae", auto),
        picture_params=("decoder", "post_quant_conv"),
        process=process,
        scale=LatentScale(
            auto.config.scaling_factor,
            auto.config.latents_mean,
            auto.config.latents_std,
        ),
        sample_posterior=vae.sample_posterior,
        latent_channels=channels,
        moment_channels=2 * channels,
        downscale=auto.config.downscale,
        sample_size=read_sample_size(configs["unet"]),
        tells_guidance=net.guidance_width is not None,
        untrainable=None if net.guidance_width is None else _DISTILLED,
        classes={
            **classes,
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
        },
        **own,
    )
    if inpaints and isinstance(process, Ddpm):
        return inpainting.paint_all(family, process)
    return family
