"""The concepts of the benchmark as files: their pictures, and what a run is told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ti_flax.benchmarks.concepts.keys import ConceptsKeys
from ti_flax.benchmarks.quality import held_out
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.benchmarks.quality.keys import LearningKeys
from ti_flax.benchmarks.quality.methods import DEFAULT
from ti_flax.config import run_config, validation, yaml_file
from ti_flax.config.fields import MOST_STEPS
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import drawing, world
from ti_flax.runtime import atomic

LIST_NAME, SETTINGS_NAME, PICTURES_NAME = "concepts.yaml", "config.yaml", "pictures"

# Each concept has its own, or a run of each.
_OF_ONE_RUN = (
    *("train_data_dir", "placeholder_token", "initializer_token", "learnable_property"),
    *("output_dir", "num_validation_images"),
)
# What is measured is learning: no previews, and no validation but at both ends.
_NOTHING_SHOWN = {"validation_prompt": [], "validation_steps": MOST_STEPS}


def concepts(count: int) -> dict[str, Concept]:
    """The first concepts of `quality --objects 24 --repeats R`, by name.

    There are 27 looks and styles; a repeated one has pictures of its own.
    """
    kinds = held_out.concepts(len(world.HELD_OUT_LOOKS))
    repeats = -(-count // len(kinds))
    learned = held_out.learned(kinds, (DEFAULT,), repeats)[:count]
    return {
        f"{concept.learnable_property}-{concept.number:03}": concept
        for concept in learned
    }


def own_keys(keys: ConceptsKeys) -> dict[str, dict[str, Any]]:
    """Name -> the keys of a run that are the concept's own, as LIST_NAME has them."""
    return {
        name: {
            "train_data_dir": str(keys.output_dir / PICTURES_NAME / name),
            "placeholder_token": f"<{name}>",
            "initializer_token": concept.initializer,
            "learnable_property": concept.learnable_property,
            "seed": (keys.seed + concept.number) % 2**32,
        }
        for name, concept in concepts(keys.concepts).items()
    }


def configuration(keys: ConceptsKeys) -> run_config.Config:
    """That of the first concept. Raises `UserError` for keys that do not fit."""
    [own, *_] = own_keys(keys).values()
    return validation.validate(
        run_config.Config, {**_shared(keys), **own}, "with --key value"
    )


def shared_keys(keys: ConceptsKeys) -> dict[str, Any]:
    """The keys that all runs share: the quickstart's, and what was given instead."""
    values = configuration(keys).model_dump(mode="json")
    return {key: values[key] for key in _shared(keys)}


def _shared(keys: ConceptsKeys) -> dict[str, Any]:
    known = [*run_config.Config.model_fields]
    shared = yaml_file.read_yaml(settings.CONFIG, known)
    shared = {key: value for key, value in shared.items() if key not in _OF_ONE_RUN}
    given = {
        key: getattr(keys, key)
        for key in (*LearningKeys.model_fields, *StoppingKeys.model_fields)
        if key != "seed" and getattr(keys, key) is not None
    }
    model = {"pretrained_model_name_or_path": keys.model}
    return {**shared, **model, **given, **_NOTHING_SHOWN}


def write_lists(keys: ConceptsKeys) -> None:
    """Writes LIST_NAME and SETTINGS_NAME, both for `python -m ti_flax.train`."""
    folder = keys.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    told = (
        f"# python -m ti_flax.train --config {folder / SETTINGS_NAME} \\\n"
        f"#   --concepts {folder / LIST_NAME} --output_dir words\n"
    )
    _write_yaml(folder / SETTINGS_NAME, told, shared_keys(keys))
    _write_yaml(folder / LIST_NAME, told, own_keys(keys))


def draw(keys: ConceptsKeys) -> None:
    """Writes the pictures of each concept as PNG files, the same for the same keys."""
    for name, concept in concepts(keys.concepts).items():
        folder = keys.output_dir / PICTURES_NAME / name
        folder.mkdir(parents=True, exist_ok=True)
        _write_pictures(folder, held_out.training_scenes(concept, keys.seed))


def _write_pictures(folder: Path, scenes: Sequence[drawing.Scene]) -> None:
    for number, scene in enumerate(scenes):
        Image.fromarray(drawing.draw(scene)).save(folder / f"{number}.png")


def _write_yaml(path: Path, told: str, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False)
    with atomic.atomic_path(path) as temporary:
        temporary.write_text(told + text, encoding="utf-8")
