"""Small runs of the trainer, and what they leave."""

import contextlib
import json
import os
import signal
from pathlib import Path

import fake_model
import numpy as np
from PIL import Image

from ti_flax.checkpoints import store
from ti_flax.config import run_config
from ti_flax.models import base_model
from ti_flax.text.embedding import Embedding
from ti_flax.training import run as training_run

# Files with times in them, and those of the checkpoints before the last.
_OF_ONE_PROCESS = ("checkpoints/", "config.yaml", "logs/", "report.html")


def draw_pictures(folder: Path, count: int = 3, seed: int = 0) -> Path:
    """Writes pictures of noise; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def keys(model: Path, pictures: Path, output_dir: Path, **given) -> dict:
    """The keys of a run of 6 steps that checkpoints every second."""
    return {
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(pictures),
        "output_dir": str(output_dir),
        "placeholder_token": "<toy>",
        "initializer_token": "toy",
        "resolution": 16,
        "train_batch_size": 8,
        "max_train_steps": 6,
        "checkpointing_steps": 2,
        **given,
    }


def make_config(*arguments, **given) -> run_config.Config:
    return run_config.Config(**keys(*arguments, **given))


def learn(model: Path, pictures: Path, folder: Path, **keys) -> Embedding:
    """The word of two vectors that a run learns."""
    given = {"initializer_token": "t", "num_vectors": 2, "train_batch_size": 4, **keys}
    config = make_config(model, pictures, folder, **given)
    (learned,) = training_run.train_concepts(config, progress=False)
    return learned.word


def to_argv(values: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


def content(folder: Path) -> dict[str, object]:
    """What two runs of the same steps must agree in, to the bit.

    Not in how long steps took, nor in the checkpoints that came before the last.
    """
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in json.loads(line).items() if "second" not in k}
                for line in path.read_text().splitlines()
            ]
        elif not name.startswith(_OF_ONE_PROCESS):
            found[name] = path.read_bytes()
    return found


def without_looks(found: dict[str, object]) -> dict[str, object]:
    """Of `content`, what does not depend on at which steps a run was looked at."""
    return {
        name: one
        for name, one in found.items()
        if name != "validation.jsonl" and not name.startswith("words/")
    }


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def skip_networks(monkeypatch) -> None:
    """Hands the trainer a family of fakes: runs take a second instead of ten."""
    monkeypatch.setattr(base_model, "open_model", fake_model.open_fake)


@contextlib.contextmanager
def stopped_after(number, monkeypatch, kind=signal.SIGTERM):
    """Sends a signal to this process when it checkpoints step `number`."""
    save, left = store.Checkpoints.save, [number]

    def save_and_signal(self, done, state):
        save(self, done, state)
        if done in left:
            left.remove(done)
            os.kill(os.getpid(), kind)

    with monkeypatch.context() as patch:
        patch.setattr(store.Checkpoints, "save", save_and_signal)
        yield
