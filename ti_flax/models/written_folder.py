"""A model as a folder in diffusers' layout, whatever it was opened from."""

import shutil
from pathlib import Path
from typing import Any

from ti_flax.models.base_model import BaseModel
from ti_flax.runtime import atomic

# Whose layout it is, where a model does not say; diffusers' inpainting pipeline asks.
_VERSION = "0.42.1"


def write(folder: Path, model: BaseModel) -> None:
    """Writes every part, its tokenizers, scheduler and index.

    Raises:
        OSError: when the disk is full or a file is in a folder's place.
    """
    family = model.family
    folder.mkdir(parents=True, exist_ok=True)
    for part in family.parts:
        model.source.copy_part(part, folder / family.folder(part))
    for encoder in family.text_encoders:
        place = folder / encoder.tokenizer
        shutil.copytree(model.tokenizer(encoder), place, dirs_exist_ok=True)
    write_scheduler(folder, model)
    atomic.write_json(folder / "model_index.json", index_of(model))


def index_of(model: BaseModel) -> dict[str, Any]:
    """The model's own model_index.json, with the parts and scheduler that are read."""
    own = {"_diffusers_version": _VERSION, **model.source.config("model_index")}
    return {**own, **model.family.model_index(model.scheduler["_class_name"])}


def write_scheduler(folder: Path, model: BaseModel) -> None:
    """Writes the scheduler's folder, with what the run's keys say."""
    (folder / "scheduler").mkdir(exist_ok=True)
    atomic.write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler)
