"""The base model with its weights in place, for many concepts and many words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from ti_flax.config import run_config
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.models.family import Conditioning, TextEncoder
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer
from ti_flax.training.networks import open_networks

# Names every concept's learned row: a slot or a call of the text encoder sees only one.
PLACEHOLDER = "<held-out>"


class LoadedModel(NamedTuple):
    """A model, the weights of all its networks and where they lie."""

    model: base_model.BaseModel
    params: dict[str, Params]
    mesh: Mesh

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder whose row is measured; the embedded model has one."""
        [encoder] = self.model.family.text_encoders
        return encoder

    def tokenizer(self):
        return load_tokenizer(self.model.tokenizer(self.encoder))

    def table(self) -> Float32[np.ndarray, "V D"]:
        return np.asarray(self.encoder.table(self.params[self.encoder.name]))

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Int32[np.ndarray, "P L"]]:
        words = {PLACEHOLDER: 1}
        tokenize = PromptTokenizer(self.tokenizer(), self.encoder.vocab_size, words)
        return {self.encoder.name: tokenize(prompts)}

    def encode_prompts(
        self, prompts: Sequence[str], row: Float32[np.ndarray, "D"], side: int
    ) -> Conditioning:
        """What is told of prompts in which the placeholder stands for `row`.

        `side` is that of the images in pixels.
        """
        ids, rows = self.tokenize(prompts), {self.encoder.name: row[None]}
        family = self.model.family
        return sampling.encode_prompts(self.params, ids, rows, family, (side, side))


def load(config: run_config.Config) -> LoadedModel:
    """The model that a configuration names, on all devices."""
    mesh = sharding.make_mesh()
    sharding.warn_of_padding(config.train_batch_size, mesh)
    model = open_networks(config, mesh)
    everywhere = sharding.replicated(mesh)
    params = {name: model.load(name, everywhere) for name in model.family.parts}
    return LoadedModel(model, params, mesh)
