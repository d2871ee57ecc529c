"""Latent diffusion with BERT (Rombach et al. 2022): the model of the paper's own code.

ldm-text2im-large-256: a UNet as Stable Diffusion 1.x has it with a wider context, its
autoencoder, and a text encoder that is not CLIP's.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ti_flax.models import attention
from ti_flax.models.family import Family, TextEncoder
from ti_flax.models.latent_diffusion import assemble
from ti_flax.models.ldm_bert import MODEL_TYPE, LdmBert, LdmBertConfig
from ti_flax.models.sources import LDM_FOLDERS
from ti_flax.models.stable_diffusion import condition
from ti_flax.models.unet_config import UNetConfig
from ti_flax.runtime.errors import UserError


def claims(text_encoder: Mapping[str, Any]) -> bool:
    """Whether a text encoder's settings are those of LDMBert."""
    return text_encoder.get("model_type") == MODEL_TYPE


def make_family(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> Family:
    """The networks that the configurations describe; they must fit one another.

    The UNet is computed in `dtype`, its attention as `plan` says; the rest in float32.

    Raises `UserError` for configurations of another family.
    """
    text = LdmBertConfig.from_json(configs["text_encoder"])
    net = UNetConfig.from_json(configs["unet"])
    if net.cross_attention_dim != text.d_model:
        raise UserError(
            f"the unet's cross_attention_dim {net.cross_attention_dim} is not bert's "
            f"d_model {text.d_model}; use the folders of one model"
        )
    encoder = TextEncoder(
        "text_encoder",
        "tokenizer",
        LdmBert(text),
        vocab_size=text.vocab_size,
        width=text.d_model,
        length=text.max_position_embeddings,
        pieces="bert",
        embedding=("model", "embed_tokens"),
    )
    return assemble(
        configs,
        net,
        dtype,
        plan,
        name="ldm",
        text_encoders=(encoder,),
        condition=condition,
        folders=LDM_FOLDERS,
        pipeline="LDMTextToImagePipeline",
        classes={
            "text_encoder": ("latent_diffusion", "LDMBertModel"),
            "tokenizer": ("transformers", "BertTokenizer"),
        },
        optional_parts=(),
        # The default of the class; StableDiffusionPipeline makes it 1.
        scheduler={"steps_offset": 0},
    )
