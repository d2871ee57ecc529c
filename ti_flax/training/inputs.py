"""Reads and checks everything that a user may have got wrong."""

import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ti_flax.checkpoints import identity
from ti_flax.config import run_config
from ti_flax.data.folder import Pictures, read_pictures
from ti_flax.data.masks import Masks
from ti_flax.formats import find
from ti_flax.generation import previews
from ti_flax.models import base_model
from ti_flax.models.family import Family, TextEncoder
from ti_flax.models.locate import find_tokenizer
from ti_flax.runtime import hosts, sharding
from ti_flax.runtime.errors import UserError, listed
from ti_flax.text import known_words
from ti_flax.text.initial_rows import (
    initial_rows,
    initializer_ids,
    warn_of_unused_pieces,
)
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer
from ti_flax.training.cropping import cropping, latents
from ti_flax.training.masking import read_masks
from ti_flax.training.networks import open_networks
from ti_flax.training.prompts import Prompts, read_prompts

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)


Tables = Mapping[str, Float32[np.ndarray, "V _"]]


class Start(NamedTuple):
    """What the vectors begin as: a word's, or without one drawn at random."""

    word: str | None
    seed: int

    def __str__(self) -> str:
        return f"random {self.seed}" if self.word is None else self.word


# The vocabularies' tables [V, D] and a start, by default the first, to rows [K, D].
InitialRows = Callable[..., dict[str, np.ndarray]]


class Bucket(NamedTuple):
    """The pictures of one size."""

    latents: tuple[int, int]  # height, width
    # Numbers of the pictures; and places among them, each as often as it counts.
    numbers: Int32[np.ndarray, "_"]
    listed: Int32[np.ndarray, "_"]


class Inputs(NamedTuple):
    """All that a run reads and checks before its weights.

    What is of a text encoder is by the encoder's name.
    """

    pictures: Pictures
    # Numbers of the pictures, each as often as it counts.
    listed: Int32[np.ndarray, "M"]
    buckets: list[Bucket]
    # Of each picture's crops, white where the concept is; None: everywhere.
    masks: list[Masks] | None
    mesh: jax.sharding.Mesh
    model: base_model.BaseModel
    # Reads the weights' files, once.
    model_fingerprint: Callable[[], str]
    tokenizers: dict[str, "transformers.PreTrainedTokenizerFast"]
    prompts: Prompts
    # The rows [K, D] of initializer_embedding; empty without it.
    given_rows: dict[str, np.ndarray]
    initial_rows: InitialRows
    previews: previews.Previews | None

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of what a resumed run must share, by the key that says where."""
        repeated = [self.listed] if len(self.listed) > len(self.pictures.names) else []
        return {
            "pretrained_model_name_or_path": self.model_fingerprint(),
            "train_data_dir": identity.fingerprint(
                *itertools.chain(*self.pictures.crops), *repeated
            ),
            "masked_loss": identity.fingerprint(*self.masks or []),
            "caption_source": identity.fingerprint(*self.prompts.of_captions()),
            "template_file": identity.fingerprint(*self.prompts.ids.values()),
            "initializer_embedding": identity.fingerprint(*self.given_rows.values()),
        }


def read_inputs(config: run_config.Config, like: Inputs | None = None) -> Inputs:
    """Reads pictures, the model's settings and prompts, and checks them.

    Of the same model as `like`, where that is given, it is not opened again.

    Raises:
        UserError: what to mend; in every process, when they differ.
    """
    pictures = read_pictures(config.train_data_dir, cropping(config), config.folders)
    order = pictures.order()
    _tell(pictures)
    masks = read_masks(config, pictures)
    hosts.check_equal("config", run_config.dump_yaml(config).splitlines())
    hosts.check_equal("train_data_dir", pictures.fingerprints())
    hosts.check_equal("masked_loss", [identity.fingerprint(*masks or [])])
    shared = _open_model(config) if like is None else like
    mesh, model, tokenizers = shared.mesh, shared.model, shared.tokenizers
    buckets = _buckets(config, model.family, pictures, order)
    tokenize = {
        encoder.name: _prompt_tokenizer(config, tokenizers[encoder.name], encoder)
        for encoder in model.family.text_encoders
    }
    shown = None
    if config.validation_prompt:
        shown = previews.Previews(config, model, tokenize, mesh)
    given_rows = _given_rows(config, model.family)
    return Inputs(
        pictures=pictures,
        listed=order,
        buckets=buckets,
        masks=masks,
        mesh=mesh,
        model=model,
        model_fingerprint=shared.model_fingerprint,
        tokenizers=tokenizers,
        prompts=read_prompts(config, pictures.names, tokenize),
        given_rows=given_rows,
        initial_rows=_initial_rows(config, tokenizers, given_rows),
        previews=shown,
    )


class _Opened(NamedTuple):
    """What is of a model, and not of a concept."""

    mesh: jax.sharding.Mesh
    model: base_model.BaseModel
    model_fingerprint: Callable[[], str]
    tokenizers: dict[str, "transformers.PreTrainedTokenizerFast"]


def _open_model(config: run_config.Config) -> _Opened:
    mesh = sharding.make_mesh(fsdp=config.fsdp)
    model = open_networks(config, mesh)
    fingerprint = functools.cache(model.fingerprint)
    return _Opened(mesh, model, fingerprint, _load_tokenizers(config, model))


def _buckets(
    config: run_config.Config,
    family: Family,
    pictures: Pictures,
    order: Int32[np.ndarray, "M"],
) -> list[Bucket]:
    """The pictures by their size, from the narrowest up."""
    found = pictures.buckets()
    places = (
        np.searchsorted(numbers, order[np.isin(order, numbers)]).astype(np.int32)
        for numbers in found.values()
    )
    return list(map(Bucket, latents(config, family, found), found.values(), places))


def _tell(pictures: Pictures) -> None:
    """What is not used as it is, and which sub-folders count how often."""
    for note in pictures.notes:
        _log.warning("train_data_dir: %s", note)
    pairs = zip(pictures.names, pictures.repeats, strict=True)
    sizes = pictures.buckets()
    if len(sizes) > 1:
        _log.info(
            "train_data_dir: %d buckets: %s",
            len(sizes),
            ", ".join(f"{w}x{h} ({len(each)})" for (w, h), each in sizes.items()),
        )
    counted = {
        name.rpartition("/")[0] or ".": count
        for name, count in pairs
        if "/" in name or count > 1
    }
    if any(count > 1 for count in counted.values()):
        _log.info(
            "train_data_dir: pictures of sub-folders count several times: %s",
            listed(f"{name} {count}" for name, count in counted.items()),
        )
    elif counted:
        _log.info("train_data_dir: pictures are of sub-folders: %s", listed(counted))


def _load_tokenizers(
    config: run_config.ModelKeys, model: base_model.BaseModel
) -> dict[str, "transformers.PreTrainedTokenizerFast"]:
    """The model's own, or for the first text encoder that of `tokenizer_name`."""
    encoders = model.family.text_encoders
    given = {}
    if config.tokenizer_name is not None:
        folder = find_tokenizer(config.tokenizer_name, config.revision)
        given[encoders[0].name] = folder
    return {
        each.name: load_tokenizer(
            given.get(each.name) or model.tokenizer(each), each.pieces
        )
        for each in encoders
    }


def _prompt_tokenizer(
    config: run_config.ConceptKeys,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    encoder: TextEncoder,
) -> PromptTokenizer:
    """Reads prompts with the placeholder in them for one text encoder."""
    tokenize = PromptTokenizer(
        tokenizer,
        encoder.vocab_size,
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
    tokenize.check_length(encoder.length)
    return tokenize


def _given_rows(config: run_config.Config, family: Family) -> dict[str, np.ndarray]:
    """The rows of `initializer_embedding`; empty without it."""
    if config.initializer_embedding is None:
        return {}
    learned = find.load_for_model(
        config.initializer_embedding,
        {encoder.name: encoder.width for encoder in family.text_encoders},
        "initializer_embedding",
    )
    if learned.num_vectors != config.num_vectors:
        raise UserError(
            f"initializer_embedding: expected {config.num_vectors} vectors "
            f"(num_vectors), found {learned.num_vectors}; set num_vectors to "
            f"{learned.num_vectors}"
        )
    return learned.rows


def _initial_rows(
    config: run_config.Config,
    tokenizers: Mapping[str, "transformers.PreTrainedTokenizerFast"],
    given_rows: dict[str, np.ndarray],
) -> InitialRows:
    """Checks the initializers; the rows follow when the tables have been loaded."""
    if given_rows:
        return lambda tables, start=None: given_rows
    first = Start(config.initializer_token, config.seed)
    for word in config.start_words:
        for tokenizer in tokenizers.values():
            initializer_ids(tokenizer, word)
        # They share CLIP's vocabulary: once is enough.
        warn_of_unused_pieces(tokenizer, word, config.num_vectors)

    def rows(tables: Tables, start: Start | None = None) -> dict[str, np.ndarray]:
        word, seed = start or first
        return {
            name: initial_rows(
                table,
                None if word is None else initializer_ids(tokenizers[name], word),
                config.num_vectors,
                config.initializer_jitter,
                seed,
                config.initializer_scale,
            )
            for name, table in tables.items()
        }

    return rows
