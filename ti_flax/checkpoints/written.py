"""What runs write into output_dir, and what there is not theirs.

Whatever the configuration says, a run replaces nothing that no run wrote.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ti_flax.runtime import own_pictures

CONFIG_NAME = "config.yaml"
FILES = (
    *("learned_embeds.bin", "learned_embeds.safetensors"),
    *("learned_embeds_2.bin", "learned_embeds_2.safetensors"),
    "learned_embeds_sdxl.safetensors",
    *("token_identifier.txt", "type_of_concept.txt", "README.md", "report.html"),
    *("metrics.jsonl", "validation.jsonl", "warnings.txt", CONFIG_NAME),
)
PICTURES = "concept_images"
FOLDERS = (PICTURES, "samples", "words")
# Of save_as_full_pipeline.
PIPELINE = (
    *("model_index.json", "tokenizer", "text_encoder", "unet", "vae", "scheduler"),
    *("tokenizer_2", "text_encoder_2", "bert", "vqvae"),
    *("feature_extractor", "safety_checker", "image_encoder"),
)


def not_of_a_run(
    folder: Path, full_pipeline: bool, resumed: Mapping[str, Any] | None
) -> Path | None:
    """A file that a run would replace in `folder` although no run wrote it, or None.

    Args:
        folder: the output_dir.
        full_pipeline: whether the run writes a whole pipeline, too.
        resumed: keys of the run that wrote there, as its checkpoint has them; None
            where there is none, and config.yaml says it.
    """
    run = resumed or _earlier_run(folder / CONFIG_NAME)
    return next(_foreign(folder, full_pipeline, run), None)


def _foreign(
    folder: Path, full_pipeline: bool, run: Mapping[str, Any] | None
) -> Iterator[Path]:
    names = [*FILES, *FOLDERS, *(PIPELINE if full_pipeline else ())]
    for name in names:
        path = folder / name
        if path.is_symlink():
            yield path  # what is written there would be elsewhere
        elif not path.exists():
            continue
        elif run is None or (name in PIPELINE and not run.get("save_as_full_pipeline")):
            yield path
    for path in (folder / PICTURES).glob("*.jpeg"):
        # Those with other names stay as they are.
        if path.stem.isdecimal() and not own_pictures.is_ours(path):
            yield path


def _earlier_run(path: Path) -> dict[str, Any] | None:
    """The keys of the run that wrote config.yaml; None when none did.

    A run begins with its first group's title and has every key: a file that a person
    writes to configure a run has a few.
    """
    try:
        text = path.read_text(encoding="utf-8")
        keys = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    wanted = {"placeholder_token", "output_dir", "save_as_full_pipeline"}
    if text.startswith("# Model\n") and isinstance(keys, dict) and wanted <= {*keys}:
        return keys
    return None
