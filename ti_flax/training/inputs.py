"""Reads and checks everything that a user may have got wrong."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

from ti_flax.checkpoints import identity
from ti_flax.config import run_config
from ti_flax.data.folder import Pictures, read_pictures
from ti_flax.diffusion.process import Schedule
from ti_flax.formats import find
from ti_flax.generation import previews
from ti_flax.models import attention, base_model
from ti_flax.models.sources import find_tokenizer
from ti_flax.runtime import hosts, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.text import known_words
from ti_flax.text.embedding import FIRST_ENCODER
from ti_flax.text.initial_rows import (
    initial_rows,
    initializer_ids,
    warn_of_unused_pieces,
)
from ti_flax.text.templates import prompt_templates
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """All that a run reads and checks before its weights."""

    pictures: Pictures
    mesh: jax.sharding.Mesh
    model: base_model.BaseModel
    schedule: Schedule
    tokenizer: "transformers.CLIPTokenizer"
    prompts: Int32[np.ndarray, "P L"]
    # The initial rows [K, D], given the vocabulary's table [V, D].
    initial_rows: Callable[[np.ndarray], np.ndarray]
    previews: previews.Previews | None

    def fingerprints(self) -> dict[str, str]:
        """Of what a checkpoint must be gone on with, by the key that says where it is.

        Reads the weights' files.
        """
        return {
            "pretrained_model_name_or_path": self.model.fingerprint(),
            "train_data_dir": identity.fingerprint(self.pictures.images),
            "template_file": identity.fingerprint(self.prompts),
        }


def read_inputs(config: run_config.Config) -> Inputs:
    """Reads pictures, the model's settings and prompts, and checks them.

    Raises:
        UserError: what to mend; in every process, when they differ.
    """
    pictures = read_pictures(
        config.train_data_dir, config.resolution, config.center_crop
    )
    for note in pictures.notes:
        _log.warning("train_data_dir: %s", note)
    hosts.check_equal("config", run_config.dump_yaml(config).splitlines())
    hosts.check_equal("train_data_dir", pictures.fingerprints())
    mesh = sharding.make_mesh(fsdp=config.fsdp)
    sharding.warn_of_padding(config.train_batch_size, mesh)
    model = base_model.open_model(
        config.pretrained_model_name_or_path,
        config.revision,
        config.variant,
        base_model.unet_dtype(config.mixed_precision),
        attention.make_plan(config.attention, mesh),
    )
    if config.resolution % model.vae.config.downscale:
        raise UserError(
            f"resolution: {config.resolution} is not a multiple of "
            f"{model.vae.config.downscale}, the pixels of a latent of this model"
        )
    schedule = Schedule.from_json(model.scheduler)
    tokenizer = load_tokenizer(_tokenizer_folder(config, model))
    tokenize = _prompt_tokenizer(config, tokenizer, model)
    templates = prompt_templates(config.learnable_property, config.template_file)
    shown = None
    if config.validation_prompt:
        shown = previews.Previews(config, model, tokenize, mesh)
    return Inputs(
        pictures=pictures,
        mesh=mesh,
        model=model,
        schedule=schedule,
        tokenizer=tokenizer,
        prompts=tokenize(
            [t.replace("{}", config.placeholder_token) for t in templates]
        ),
        initial_rows=_initial_rows(config, tokenizer, model),
        previews=shown,
    )


def _tokenizer_folder(config: run_config.Config, model: base_model.BaseModel) -> Path:
    if config.tokenizer_name is None:
        return model.folder / "tokenizer"
    return find_tokenizer(config.tokenizer_name, config.revision)


def _prompt_tokenizer(
    config: run_config.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: base_model.BaseModel,
) -> PromptTokenizer:
    """Reads prompts with the placeholder in them for the model's text encoder."""
    tokenize = PromptTokenizer(
        tokenizer,
        model.text_encoder.config.vocab_size,
        {config.placeholder_token: config.num_vectors},
    )
    found_whole = known_words.normal_form(tokenizer, config.placeholder_token)
    if config.num_vectors > 1 and found_whole != config.placeholder_token:
        _log.warning(
            "placeholder_token: diffusers finds only the first vector of %a; %r, its "
            "form of small and composed letters, would keep all %d",
            config.placeholder_token,
            found_whole,
            config.num_vectors,
        )
    if tokenize.length > model.text_encoder.config.max_position_embeddings:
        raise UserError(
            f"the tokenizer makes {tokenize.length} tokens, the text encoder takes "
            f"{model.text_encoder.config.max_position_embeddings}; use the tokenizer "
            "and text encoder of one model"
        )
    return tokenize


def _initial_rows(
    config: run_config.Config,
    tokenizer: "transformers.CLIPTokenizer",
    model: base_model.BaseModel,
) -> Callable[[np.ndarray], np.ndarray]:
    """Checks the initializer; the rows follow when the table has been loaded."""
    if config.initializer_embedding is not None:
        widths = {FIRST_ENCODER: model.text_encoder.config.hidden_size}
        rows = find.load_for_model(
            config.initializer_embedding, widths, "initializer_embedding"
        ).rows[FIRST_ENCODER]
        if len(rows) != config.num_vectors:
            raise UserError(
                f"initializer_embedding: expected {config.num_vectors} vectors "
                f"(num_vectors), found {len(rows)}; set num_vectors to {len(rows)}"
            )
        return lambda table: rows
    ids = None
    if config.initializer_token is not None:
        ids = initializer_ids(tokenizer, config.initializer_token)
        warn_of_unused_pieces(tokenizer, config.initializer_token, config.num_vectors)
    return lambda table: initial_rows(
        table, ids, config.num_vectors, config.initializer_jitter, config.seed
    )
