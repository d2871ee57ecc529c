"""A model folder with random weights.

It has a known model's shape and makes noise: enough to try the trainer, and to measure
its speed and memory, where no weights can be had.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from ti_flax.models import bert_tokenizer, clip_tokenizer, families, known
from ti_flax.models.random_params import random_params
from ti_flax.models.torch_params import save_params
from ti_flax.runtime import atomic

_log = logging.getLogger(__name__)


def write_random_model(folder: Path, shape: str, seed: int = 0) -> None:
    """Writes a folder in diffusers' layout: float32 weights of `shape`, a tokenizer."""
    configs = known.SHAPES[shape]
    family = families.make_family(configs)
    for part in family.parts:
        params = random_params(configs, part, seed)
        save_params(
            folder / family.folder(part), configs[part], params, np.dtype(np.float32)
        )
    atomic.write_json(
        folder / "scheduler" / "scheduler_config.json", configs["scheduler"]
    )
    for encoder in family.text_encoders:
        write_tokenizer(folder / encoder.tokenizer, encoder.pieces)
    index = {
        **configs.get("model_index", {}),
        **family.model_index(configs["scheduler"]["_class_name"]),
        **dict.fromkeys(family.optional_parts, (None, None)),
    }
    atomic.write_json(folder / "model_index.json", index)
    _log.info("wrote %s: random weights in the shape of %s", folder, shape)


def write_tokenizer(folder: Path, pieces: Literal["clip", "bert"] = "clip") -> None:
    """A tokenizer to which every letter is a token.

    CLIP's without a single merge; the second of SDXL pads with "!", whose id is 0,
    others with the end of text. Or BERT's, without a word.
    """
    if pieces == "bert":
        bert_tokenizer.write(folder)
        return
    pad = "!" if folder.name == "tokenizer_2" else clip_tokenizer.END
    clip_tokenizer.write(folder, pad, merges=())
