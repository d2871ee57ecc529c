"""SDXL (Podell et al. 2023): two text encoders, sizes of pictures, a larger UNet."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from ti_flax.models import attention
from ti_flax.models.clip_states import ClipStates, TextStates
from ti_flax.models.clip_text import ClipTextConfig
from ti_flax.models.family import Conditioning, Family, TextEncoder
from ti_flax.models.latent_diffusion import assemble, clip_encoder
from ti_flax.models.unet_config import REFINER, UNetConfig, is_refiner
from ti_flax.runtime.errors import UserError
from ti_flax.runtime.json_settings import Settings

PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# (height, width) of the original, (top, left) of the crop, (height, width) of it.
_NUM_SIZES = 6
# With an eos_token_id of 2, as in most files, transformers pools at the highest id of a
# prompt: of CLIP's words that is the end of text, and with learned ones it is theirs.
_HIGHEST_ID = 2
_CLIP_EOS = 49407
_INSTEAD = "use an SDXL model"


def claims(net: Mapping[str, Any]) -> bool:
    """Whether a UNet's settings are those of SDXL or a relative."""
    return net.get("addition_embed_type") == "text_time"


def parts(net: Mapping[str, Any]) -> tuple[str, ...]:
    """The folders of the networks of a model with such a UNet.

    Raises `UserError` for the refiner, which has one text encoder only.
    """
    if is_refiner(net):
        raise UserError(f"unet: this is {REFINER}")
    return PARTS


def condition(
    outputs: Mapping[str, TextStates], sizes: Int[Array, "B 6"]
) -> Conditioning:
    """Context, pooled text and the sizes of the pictures."""
    first, second = outputs["text_encoder"], outputs["text_encoder_2"]
    context = jnp.concatenate([first.hidden, second.hidden], axis=-1)
    return context, second.pooled, sizes


def tell_nothing(told: Conditioning) -> Conditioning:
    """No text, as in SDXL's training: zeros in place of context and pooled text."""
    context, pooled, sizes = told
    return jnp.zeros_like(context), jnp.zeros_like(pooled), sizes


def make_family(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> Family:
    """The networks that the configurations describe; they must fit one another.

    The UNet is computed in `dtype`, its attention as `plan` says; the rest in float32.

    Raises `UserError` for configurations of another family.
    """
    encoders = tuple(_text_encoder(name, configs[name]) for name in _TOKENIZERS)
    net = UNetConfig.from_json(configs["unet"])
    _check_fit(encoders, net)
    index = Settings("model_index.json", configs["model_index"], _INSTEAD)
    zeros = index.flag("force_zeros_for_empty_prompt", True)
    return assemble(
        configs,
        net,
        dtype,
        plan,
        name="sdxl",
        text_encoders=encoders,
        condition=condition,
        tell_nothing=tell_nothing if zeros else None,
        pipeline="StableDiffusionXLPipeline",
        classes={
            "text_encoder": ("transformers", "CLIPTextModel"),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "tokenizer_2": ("transformers", "CLIPTokenizer"),
        },
        optional_parts=("feature_extractor", "image_encoder"),
    )


def _text_encoder(name: str, content: Mapping[str, Any]) -> TextEncoder:
    config = ClipTextConfig.from_json(content, name)
    settings = Settings(name, content, _INSTEAD)
    projected = None
    if name == "text_encoder_2":
        projected = settings.integer("projection_dim", 1, 16384, 512)
    eos = settings.integer("eos_token_id", 0, 2**20, _CLIP_EOS)
    if eos == _HIGHEST_ID:
        eos = min(_CLIP_EOS, config.vocab_size - 1)
    module = ClipStates(config, projected=projected, eos=eos)
    return clip_encoder(name, _TOKENIZERS[name], module, config)


def _check_fit(encoders: tuple[TextEncoder, ...], net: UNetConfig) -> None:
    width = sum(encoder.width for encoder in encoders)
    if net.cross_attention_dim != width:
        raise UserError(
            f"the unet's cross_attention_dim {net.cross_attention_dim} is not the sum "
            f"of the text encoders' hidden_size, {width}; use the folders of one model"
        )
    added = encoders[-1].module.projected + _NUM_SIZES * net.size_width
    if net.added_width != added:
        raise UserError(
            f"the unet's projection_class_embeddings_input_dim {net.added_width} is "
            f"not {added}, the pooled text's width and that of {_NUM_SIZES} sizes; use "
            "the folders of one SDXL model"
        )
