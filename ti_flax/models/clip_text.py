"""CLIP's text encoder (Radford et al. 2021), with rows for learned words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ti_flax.models import attention, layers
from ti_flax.runtime.json_settings import Settings

_INSTEAD = "use a Stable Diffusion 1.x, 2.x or SDXL model"


class ClipTextConfig(NamedTuple):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], part: str = "text_encoder"
    ) -> "ClipTextConfig":
        """Reads the config.json of a text encoder, the folder `part`.

        Raises `UserError` for another architecture than CLIP's text model.
        """
        settings = Settings(part, config, _INSTEAD)
        settings.fixed({"model_type": "clip_text_model"})
        # The defaults of transformers' CLIPTextConfig, which may omit them on saving.
        read = cls(
            vocab_size=settings.integer("vocab_size", 1, 2**20, 49408),
            hidden_size=settings.integer("hidden_size", 1, 16384, 512),
            intermediate_size=settings.integer("intermediate_size", 1, 65536, 2048),
            num_hidden_layers=settings.integer("num_hidden_layers", 1, 128, 12),
            num_attention_heads=settings.integer("num_attention_heads", 1, 1024, 8),
            max_position_embeddings=settings.integer(
                "max_position_embeddings", 3, 4096, 77
            ),
            hidden_act=settings.choice("hidden_act", layers.ACTIVATIONS, "quick_gelu"),
            layer_norm_eps=settings.number("layer_norm_eps", 0, 1, 1e-5),
        )
        heads = read.num_attention_heads
        settings.divides("num_attention_heads", heads, (read.hidden_size,))
        return read


class TokenEmbedding(nn.Module):
    """The frozen table, continued by learned rows: id V + k is row k."""

    vocab_size: int
    features: int

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> Float[Array, "B L D"]:
        table = self.param(
            "embedding", nn.initializers.normal(0.02), (self.vocab_size, self.features)
        )
        words = jnp.take(table, jnp.minimum(ids, self.vocab_size - 1), axis=0)
        if rows.shape[-2] == 0:
            return words
        # A product with one-hot vectors, not a gather: its gradient is a product too,
        # adding in the same order on every run; a scatter-add on a GPU does not.
        one_hot = jax.nn.one_hot(ids - self.vocab_size, rows.shape[-2])
        learned = jnp.einsum(
            "blk,bkd->bld", one_hot, rows, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.where((ids >= self.vocab_size)[..., None], learned, words)


class Embeddings(nn.Module):
    config: ClipTextConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> Float[Array, "B L D"]:
        config = self.config
        words = TokenEmbedding(
            config.vocab_size, config.hidden_size, name="token_embedding"
        )(ids, rows)
        positions = nn.Embed(
            config.max_position_embeddings,
            config.hidden_size,
            name="position_embedding",
        )(jnp.arange(ids.shape[-1])[None])
        return words + positions


class SelfAttention(nn.Module):
    """Causal: a token sees itself and those before it."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width = x.shape[-1]

        def project(name: str) -> Array:
            out = layers.dense(width, name, self.dtype)(x)
            return out.reshape(*x.shape[:2], self.heads, width // self.heads)

        out = attention.plain(
            project("q_proj"), project("k_proj"), project("v_proj"), causal=True
        )
        return layers.dense(width, "out_proj", self.dtype)(out.reshape(x.shape))


class Mlp(nn.Module):
    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        h = layers.dense(self.config.intermediate_size, "fc1", self.dtype)(x)
        h = layers.ACTIVATIONS[self.config.hidden_act](h)
        return layers.dense(self.config.hidden_size, "fc2", self.dtype)(h)


class Layer(nn.Module):
    """Its products are in `dtype`; x, their sum, stays as it comes."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        config, dtype = self.config, self.dtype

        def norm(name: str) -> Array:
            return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, name=name)(x)

        heads = config.num_attention_heads
        x = x + SelfAttention(heads, dtype, name="self_attn")(norm("layer_norm1"))
        return x + Mlp(config, dtype, name="mlp")(norm("layer_norm2"))


class Encoder(nn.Module):
    """All layers: the output of the last, and of the last but one."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        before = x
        for i in range(self.config.num_hidden_layers):
            before, x = x, Layer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x, before


class Clip(nn.Module):
    """A text encoder of CLIP's, whatever is read of it.

    The layers' kernels and products are in `dtype`; words, positions, the sums between
    the layers and what is read of them in float32, as learned rows are.
    """

    config: ClipTextConfig
    dtype: DTypeLike = jnp.float32

    def example_inputs(self) -> tuple[Array, Array]:
        """Arguments of `init`: a prompt without learned rows."""
        rows = jnp.zeros((1, 0, self.config.hidden_size))
        return jnp.zeros((1, self.config.max_position_embeddings), jnp.int32), rows


class ClipText(Clip):
    """Token ids and learned rows to the UNet's context.

    `rows` are the learned rows that each example sees: id V + k in example b is
    `rows[b, k]`. The result is the last hidden state after the final layer norm, which
    is what Stable Diffusion 1.x and 2.x condition on. In float32 where memory allows:
    it is 1.6 % of the work and the last stretch of the rows' gradient.
    """

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> Float[Array, "B L D"]:
        x = Embeddings(self.config, name="embeddings")(ids, rows)
        x, _ = Encoder(self.config, self.dtype, name="encoder")(x)
        return nn.LayerNorm(self.config.layer_norm_eps, name="final_layer_norm")(x)
