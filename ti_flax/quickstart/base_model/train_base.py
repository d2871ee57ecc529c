"""Trains the quickstart model from scratch: the autoencoder, then text and UNet.

    python -m ti_flax.quickstart.base_model.train_base --output DIR
        [--minutes 100] [--seed 0] [--initial MODEL]

Uses PyTorch: on a CPU with bfloat16 matrix units its convolutions are about ten times
faster than XLA's. The same command again resumes an interrupted run. Losses,
checkpoints and sample pictures go to DIR/work, the model in diffusers' layout to
DIR/model. With --initial, the text encoder and the UNet of that folder are trained
further, on its autoencoder and tokenizer.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Int32
from transformers import CLIPTokenizer

from ti_flax.quickstart.base_model import (
    latents,
    noun_rows,
    train_tokenizer,
    train_unet,
    train_vae,
    workers,
)
from ti_flax.quickstart.critters import drawing, picture_cache, world

_VAE_SHARE = 0.38  # of the minutes
_CAPTIONS = 4  # of each picture
_MERGES = 500  # at most; every word of the world becomes one token
_LENGTH = 48  # tokens; the longest caption has 28, which leaves room for 20 vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=100, help="time to train")
    parser.add_argument(
        "--pictures", type=int, default=50_000, help="drawn to train on"
    )
    parser.add_argument("--initial", type=Path, help="model folder to continue from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    work = options.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    name = f"pictures_{options.seed}_{options.pictures}.npy"
    picture_cache.drawn_pictures(
        work / name, options.seed, options.pictures, options.workers
    )
    workers.launch(options.workers, _train, options, work, work / name)


def _train(options: argparse.Namespace, work: Path, drawn: Path) -> None:
    pictures = np.load(drawn, mmap_mode="r")
    seconds, initial = 60 * options.minutes, None
    if options.initial:
        initial = StableDiffusionPipeline.from_pretrained(options.initial)
        vae = initial.vae.to(memory_format=torch.channels_last)
    else:
        vae = train_vae.train(pictures, work, _VAE_SHARE * seconds, options.seed)
        seconds *= 1 - _VAE_SHARE
    moments = latents.encode(vae, pictures, work / "latents.npz")
    moments = latents.normalise(vae, moments)
    scenes = [world.training_scene(options.seed, i) for i in range(len(pictures))]
    captions = _captions(scenes, options.seed)
    if initial is None and workers.rank() == 0:
        train_tokenizer.train(captions, work / "tokenizer", _MERGES, _LENGTH)
    workers.wait()
    tokenizer_folder = (options.initial or work) / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    said = train_unet.Said(
        _token_ids(tokenizer, captions).reshape(len(pictures), _CAPTIONS, _LENGTH),
        np.array([noun_rows.parts(scene) for scene in scenes], np.int32),
    )
    pipe = train_unet.train(
        moments, said, tokenizer, vae, work, seconds, options.seed, initial
    )
    if workers.rank() == 0:
        train_unet.show(pipe, work / "unet_final.png")
        export(pipe, tokenizer_folder, options.output / "model")


def _captions(scenes: Sequence[drawing.Scene], seed: int) -> list[str]:
    """Several captions of each picture, one picture after the other."""
    rng = np.random.default_rng([seed, 1])
    return [world.caption(scene, rng) for scene in scenes for _ in range(_CAPTIONS)]


def _token_ids(
    tokenizer: CLIPTokenizer, captions: list[str]
) -> Int32[np.ndarray, "P L"]:
    padded = tokenizer(captions, padding="max_length", truncation=True)
    return np.asarray(padded.input_ids, np.int32)


def export(pipe: StableDiffusionPipeline, tokenizer: Path, folder: Path) -> None:
    """Writes the model in float16, its tokenizer as Stable Diffusion's files."""
    pipe.to(torch.float16).save_pretrained(folder)
    # transformers loads in the type the configuration names, diffusers in float32: a
    # plain `StableDiffusionPipeline.from_pretrained(folder)` must not mix the two.
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n")
    for written in (folder / "tokenizer").iterdir():
        written.unlink()
    for source in tokenizer.iterdir():
        (folder / "tokenizer" / source.name).write_bytes(source.read_bytes())


if __name__ == "__main__":
    main()
