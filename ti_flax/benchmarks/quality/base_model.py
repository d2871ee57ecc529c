"""The base model with its weights in place, for many concepts and many words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from ti_flax.config import run_config
from ti_flax.generation import sampling
from ti_flax.models import attention, base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

# Names every concept's learned row: a slot or a call of the text encoder sees only one.
PLACEHOLDER = "<held-out>"


class Frozen(NamedTuple):
    """A model, the weights of all its networks and where they lie."""

    model: base_model.BaseModel
    params: dict[str, Params]
    mesh: Mesh

    def tokenizer(self):
        return load_tokenizer(self.model.folder / "tokenizer")

    def table(self) -> Float32[np.ndarray, "V D"]:
        embeddings = self.params["text_encoder"]["embeddings"]
        return np.asarray(embeddings["token_embedding"]["embedding"])

    def tokenize(self, prompts: Sequence[str]) -> Int32[np.ndarray, "P L"]:
        vocab_size = self.model.text_encoder.config.vocab_size
        words = {PLACEHOLDER: 1}
        return PromptTokenizer(self.tokenizer(), vocab_size, words)(prompts)

    def encode_prompts(
        self, prompts: Sequence[str], row: Float32[np.ndarray, "D"]
    ) -> Float32[np.ndarray, "P L D"]:
        """Contexts of prompts in which the placeholder stands for `row`."""
        return np.asarray(
            sampling.encode_prompts(
                self.params["text_encoder"],
                self.tokenize(prompts),
                row[None],
                text_encoder=self.model.text_encoder,
            )
        )


def load(config: run_config.Config) -> Frozen:
    """The model that a configuration names, on all devices."""
    mesh = sharding.make_mesh()
    sharding.warn_of_padding(config.train_batch_size, mesh)
    model = base_model.open_model(
        config.pretrained_model_name_or_path,
        dtype=base_model.unet_dtype(config.mixed_precision),
        plan=attention.make_plan(config.attention, mesh),
    )
    everywhere = sharding.replicated(mesh)
    networks = ("text_encoder", "unet", "vae")
    return Frozen(
        model, {name: model.load(name, everywhere) for name in networks}, mesh
    )
