"""What a run leaves: its concept's folder, the whole pipeline, and the Hub."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from ti_flax import config as configuration
from ti_flax import export, full_pipeline, hub, model_card, provenance
from ti_flax.formats.embedding import Embedding
from ti_flax.models import weights

if TYPE_CHECKING:
    import transformers


def check(config: configuration.Config) -> None:
    """Raises `UserError` before a run when its result could not be uploaded."""
    if config.push_to_hub:
        hub.check(_repo_id(config), _token(config))


def write(
    config: configuration.Config,
    learned: Embedding,
    pictures: UInt8[np.ndarray, "N H W 3"],
) -> None:
    """Writes the concept's folder, its model card with it."""
    folder, property_ = config.output_dir, config.learnable_property
    export.export_concept(folder, learned, property_, pictures)
    base_model_id = provenance.hub_id(config.pretrained_model_name_or_path)
    model_card.write(folder, learned, property_, base_model_id, config.license)


def finish(
    config: configuration.Config,
    model: weights.BaseModel,
    tokenizer: "transformers.CLIPTokenizer",
    learned: Embedding,
) -> None:
    """After `write`, at the end of a run: the whole pipeline, and the Hub, as asked.

    Raises `UserError` when the upload fails; everything has been written by then.
    """
    folder = config.output_dir
    if config.save_as_full_pipeline:
        full_pipeline.write(folder, model, tokenizer, learned)
    if config.push_to_hub:
        hub.push(folder, _repo_id(config), config.hub_private_repo, _token(config))


def _repo_id(config: configuration.Config) -> str:
    return config.hub_model_id or config.output_dir.absolute().name


def _token(config: configuration.Config) -> str | None:
    return config.hub_token.get_secret_value() if config.hub_token else None
