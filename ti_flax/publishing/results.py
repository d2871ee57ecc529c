"""What a run leaves: its concept's folder, the whole pipeline, and the Hub."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from ti_flax.config import run_config, run_keys
from ti_flax.hub import upload
from ti_flax.hub.ids import hub_id
from ti_flax.models import base_model
from ti_flax.publishing import concept_folder, full_pipeline, model_card
from ti_flax.runtime import atomic
from ti_flax.text.embedding import Embedding

if TYPE_CHECKING:
    import transformers


def check(config: run_keys.ResultKeys) -> None:
    """Raises `UserError` before a run when its result could not be uploaded."""
    if config.push_to_hub:
        upload.check(_repo_id(config), _token(config))


def write(
    config: run_config.Config,
    learned: Embedding,
    pictures: Collection[UInt8[np.ndarray, "_ _ 3"]],
) -> None:
    """Writes the concept's folder, its model card with it."""
    folder, property_ = config.output_dir, config.learnable_property
    concept_folder.export_concept(folder, learned, property_, pictures)
    base_model_id = hub_id(config.pretrained_model_name_or_path)
    model_card.write(folder, learned, property_, base_model_id, config.license)


def finish(
    config: run_config.Config,
    model: base_model.BaseModel,
    tokenizers: Mapping[str, "transformers.PreTrainedTokenizerFast"],
    learned: Embedding,
) -> None:
    """After `write`, at the end of a run: the whole pipeline, and the Hub, as asked.

    Raises:
        UserError: when one of them fails; the concept's folder is whole by then.
    """
    folder = config.output_dir
    if config.save_as_full_pipeline:
        with atomic.one_line_errors(
            "the whole pipeline",
            "the learned word itself is saved; make room for the pipeline, then run "
            "again with resume_from_checkpoint latest",
        ):
            full_pipeline.write(folder, model, tokenizers, learned)
    if config.push_to_hub:
        files = concept_folder.concept_files(folder)
        upload.push(
            folder, files, _repo_id(config), config.hub_private_repo, _token(config)
        )


def _repo_id(config: run_config.Config) -> str:
    return config.hub_model_id or config.output_dir.absolute().name


def _token(config: run_keys.ResultKeys) -> str | None:
    return config.hub_token.get_secret_value() if config.hub_token else None
