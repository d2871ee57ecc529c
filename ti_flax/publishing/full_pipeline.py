"""A whole diffusers folder in which the base model knows the learned word.

PyTorch loads it with `StableDiffusionPipeline.from_pretrained` and no further step: the
tokenizer has the placeholder's names, the text encoder's table their rows.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from ti_flax.models import base_model, written_folder
from ti_flax.models.family import TextEncoder
from ti_flax.models.sources import copy_file
from ti_flax.models.torch_params import save_params
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import one_line
from ti_flax.text.embedding import Embedding
from ti_flax.text.tokenizer import vector_names

if TYPE_CHECKING:
    import transformers


def write(
    folder: Path,
    model: base_model.BaseModel,
    tokenizers: Mapping[str, "transformers.PreTrainedTokenizerFast"],
    learned: Embedding,
) -> None:
    """Writes the pipeline into `folder`; files of the same names are replaced.

    The text encoder is float32, in which the rows were learned; UNet and VAE are copied
    as they are, a variant's files under the names without it. model_index.json, without
    which nobody takes a folder for a pipeline, comes last.

    Raises:
        OSError: when the disk is full or a file is in a folder's place.
    """
    with _one_kind_of_error():
        _write_all(folder, model, tokenizers, learned)


def _write_all(
    folder: Path,
    model: base_model.BaseModel,
    tokenizers: Mapping[str, "transformers.PreTrainedTokenizerFast"],
    learned: Embedding,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    family = model.family
    for encoder in family.text_encoders:
        tokenizer = tokenizers[encoder.name]
        ids = _write_tokenizer(folder / encoder.tokenizer, tokenizer, learned)
        changed = {"eos_token_id": tokenizer.eos_token_id}
        _write_text_encoder(folder, model, encoder, learned, ids, changed)
    for part in (family.denoiser, family.autoencoder):
        model.source.copy_part(part.name, folder / family.folder(part.name))
    written_folder.write_scheduler(folder, model)
    for name in family.optional_parts:
        if (model.source.path / name).is_dir():
            _copy_folder(folder / name, model.source.path / name)
    atomic.write_json(folder / "model_index.json", _model_index(folder, model))


@contextlib.contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """What safetensors raises when the system refuses, as the OSError that it is."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise OSError(one_line(error)) from error


def _write_tokenizer(
    folder: Path, tokenizer: "transformers.PreTrainedTokenizerFast", learned: Embedding
) -> list[int]:
    """Saves the tokenizer with the vectors' names; returns their ids."""
    tokenizer = copy.deepcopy(tokenizer)
    names = vector_names(learned.token, learned.num_vectors)
    tokenizer.add_tokens(names)
    # Else transformers takes a file in its place for done.
    folder.mkdir(exist_ok=True)
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # tokenizers' errors have no class of their own
        raise OSError(one_line(error)) from error
    return tokenizer.convert_tokens_to_ids(names)


def _write_text_encoder(
    folder: Path,
    model: base_model.BaseModel,
    encoder: TextEncoder,
    learned: Embedding,
    ids: list[int],
    changed: Mapping[str, Any],
) -> None:
    """`changed` are further settings of config.json.

    An eos_token_id of 2, as in most files, lets transformers pool the text at the
    highest id, which is a learned word's.
    """
    params = model.load(encoder.name)
    table = np.asarray(encoder.table(params))
    # A tokenizer may know fewer words than the table has rows.
    vocab_size = max(len(table), *(id_ + 1 for id_ in ids))
    longer = np.zeros((vocab_size, table.shape[1]), np.float32)
    longer[: len(table)] = table
    longer[ids] = learned.rows[encoder.name]
    encoder.table_in(params)["embedding"] = longer
    config = {**model.source.config(encoder.name), **changed}
    config["vocab_size"] = vocab_size
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float32"
    save_params(folder / model.family.folder(encoder.name), config, params, np.float32)


def _copy_folder(folder: Path, source: Path) -> None:
    """The files of a part; none has folders, and what is no file is not copied."""
    folder.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            copy_file(folder / path.name, path)


def _model_index(folder: Path, model: base_model.BaseModel) -> dict[str, Any]:
    """The base model's index, without the parts that are not there."""
    index = written_folder.index_of(model)
    optional = model.family.optional_parts
    for name in optional:
        if not (folder / name).is_dir():
            index[name] = [None, None]
    if "safety_checker" in optional:
        index["requires_safety_checker"] = (folder / "safety_checker").is_dir()
    return index
