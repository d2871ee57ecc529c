"""The text encoder of latent diffusion with BERT (Rombach et al. 2022), with rows for
learned words.

A transformer trained with the UNet from random weights; of BERT it has the vocabulary.
No mask: a token sees those after it, and the padding. Names are those of diffusers'
LDMBertModel.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ti_flax.models import attention, layers
from ti_flax.models.clip_text import TokenEmbedding
from ti_flax.runtime.json_settings import Settings

MODEL_TYPE = "ldmbert"
_INSTEAD = "use the latent diffusion model CompVis/ldm-text2im-large-256"
_EPS = 1e-5


class LdmBertConfig(NamedTuple):
    vocab_size: int
    d_model: int
    encoder_layers: int
    encoder_ffn_dim: int
    encoder_attention_heads: int
    head_dim: int
    max_position_embeddings: int
    activation_function: str

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "LdmBertConfig":
        """Reads `bert/config.json`.

        Raises `UserError` for another architecture than LDMBert.
        """
        settings = Settings("bert", config, _INSTEAD)
        settings.fixed({"model_type": MODEL_TYPE})
        # The defaults of diffusers' LDMBertConfig, which are the published model's.
        return cls(
            vocab_size=settings.integer("vocab_size", 1, 2**20, 30522),
            d_model=settings.integer("d_model", 1, 16384, 1280),
            encoder_layers=settings.integer("encoder_layers", 1, 128, 32),
            encoder_ffn_dim=settings.integer("encoder_ffn_dim", 1, 65536, 5120),
            encoder_attention_heads=settings.integer(
                "encoder_attention_heads", 1, 1024, 8
            ),
            head_dim=settings.integer("head_dim", 1, 1024, 64),
            max_position_embeddings=settings.integer(
                "max_position_embeddings", 3, 4096, 77
            ),
            activation_function=settings.choice(
                "activation_function", layers.ACTIVATIONS, "gelu"
            ),
        )


class SelfAttention(nn.Module):
    """Heads of a width of their own: together they may be narrower than the text."""

    heads: int
    head_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        inner = self.heads * self.head_dim

        def project(name: str) -> Array:
            out = layers.dense(inner, name, self.dtype, use_bias=False)(x)
            return out.reshape(*x.shape[:2], self.heads, self.head_dim)

        out = attention.plain(project("q_proj"), project("k_proj"), project("v_proj"))
        out = out.reshape(*x.shape[:2], inner)
        return layers.dense(x.shape[-1], "out_proj", self.dtype)(out)


class Layer(nn.Module):
    """Its products are in `dtype`; x, their sum, stays as it comes."""

    config: LdmBertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        config, dtype = self.config, self.dtype
        h = nn.LayerNorm(_EPS, dtype=dtype, name="self_attn_layer_norm")(x)
        x = x + SelfAttention(
            config.encoder_attention_heads, config.head_dim, dtype, name="self_attn"
        )(h)
        h = nn.LayerNorm(_EPS, dtype=dtype, name="final_layer_norm")(x)
        h = layers.dense(config.encoder_ffn_dim, "fc1", dtype)(h)
        h = layers.ACTIVATIONS[config.activation_function](h)
        return x + layers.dense(config.d_model, "fc2", dtype)(h)


class Encoder(nn.Module):
    config: LdmBertConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> Float[Array, "B L D"]:
        config = self.config
        words = TokenEmbedding(config.vocab_size, config.d_model, name="embed_tokens")
        positions = nn.Embed(
            config.max_position_embeddings, config.d_model, name="embed_positions"
        )(jnp.arange(ids.shape[-1])[None])
        x = words(ids, rows) + positions
        for i in range(config.encoder_layers):
            x = Layer(config, self.dtype, name=f"layers_{i}")(x)
        return nn.LayerNorm(_EPS, name="layer_norm")(x)


class LdmBert(nn.Module):
    """Token ids and learned rows to the UNet's context.

    `rows` are the learned rows that each example sees: id V + k in example b is
    `rows[b, k]`. `dtype` is as in `Clip`. `to_logits`, which the files have for words
    of the original training, is not read.
    """

    config: LdmBertConfig
    dtype: DTypeLike = jnp.float32

    def example_inputs(self) -> tuple[Array, Array]:
        """Arguments of `init`: a prompt without learned rows."""
        rows = jnp.zeros((1, 0, self.config.d_model))
        return jnp.zeros((1, self.config.max_position_embeddings), jnp.int32), rows

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> Float[Array, "B L D"]:
        return Encoder(self.config, self.dtype, name="model")(ids, rows)
