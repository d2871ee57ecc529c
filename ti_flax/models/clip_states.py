"""CLIP's text encoder as SDXL reads it (Podell et al. 2023, section 2.1).

The context is the output of the last layer but one, without the final layer norm; the
pooled text is the last layer's, normed and projected, at the end of the prompt.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ti_flax.models.clip_text import Clip, Embeddings, Encoder


class TextStates(NamedTuple):
    """What SDXL reads of a text encoder; `pooled` is None where it has none."""

    hidden: Float[Array, "B L D"]
    pooled: Float[Array, "B P"] | None


class ClipStates(Clip):
    """Token ids and learned rows to hidden states and, with `projected`, pooled text.

    The pooled text is taken at the first `eos`. `rows` are as in `ClipText`. What is
    not asked for (CLIP-L's last layer) is in the weights and not computed.
    """

    projected: int | None = None
    eos: int = 49407

    @nn.compact
    def __call__(
        self, ids: Int[Array, "B L"], rows: Float[Array, "B K D"]
    ) -> TextStates:
        x = Embeddings(self.config, name="embeddings")(ids, rows)
        last, hidden = Encoder(self.config, self.dtype, name="encoder")(x)
        last = nn.LayerNorm(self.config.layer_norm_eps, name="final_layer_norm")(last)
        if self.projected is None:
            return TextStates(hidden, None)
        ends = jnp.argmax(ids == self.eos, axis=1)
        at_end = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        project = nn.Dense(self.projected, use_bias=False, name="text_projection")
        return TextStates(hidden, project(at_end))
