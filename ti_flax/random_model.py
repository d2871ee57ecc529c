"""`python -m ti_flax.random_model`: a model folder with random weights.

It has a known model's shape and makes noise: enough to try the trainer, and to measure
its speed and memory, where no weights can be had.
"""

import argparse
from pathlib import Path

import numpy as np

from ti_flax.models import known
from ti_flax.models.random_params import random_params
from ti_flax.models.torch_params import save_params
from ti_flax.runtime import atomic, errors


def write_random_model(folder: Path, shape: str, seed: int = 0) -> None:
    """Writes a folder in diffusers' layout: float32 weights of `shape`, a tokenizer."""
    configs = known.SHAPES[shape]
    for component in ("text_encoder", "unet", "vae"):
        params = random_params(configs, component, seed)
        save_params(
            folder / component, configs[component], params, np.dtype(np.float32)
        )
    atomic.write_json(
        folder / "scheduler" / "scheduler_config.json", configs["scheduler"]
    )
    _write_tokenizer(folder / "tokenizer")
    classes = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", configs["scheduler"]["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", **classes}
    atomic.write_json(folder / "model_index.json", index)


def byte_symbols() -> list[str]:
    """One printable character for each byte, as GPT-2 and CLIP write them in files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in [*printable, *others]]


def _write_tokenizer(folder: Path) -> None:
    """CLIP's byte-level tokenizer without a single merge: every letter is a token."""
    symbols = byte_symbols()
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    atomic.write_json(folder / "vocab.json", {s: i for i, s in enumerate(vocabulary)})
    with atomic.atomic_path(folder / "merges.txt") as path:
        path.write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    atomic.write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    atomic.write_json(folder / "tokenizer_config.json", settings)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ti_flax.random_model")
    parser.add_argument("shape", choices=known.SHAPES, help="the model to resemble")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random_model(arguments.folder, arguments.shape, arguments.seed)
    print(f"{arguments.folder}: random weights in the shape of {arguments.shape}")


if __name__ == "__main__":
    errors.run(main)
