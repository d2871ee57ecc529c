"""Small runs of the trainer, and what they leave."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ti_flax.config import run_config
from ti_flax.models import base_model
from ti_flax.step import bank as step_bank
from ti_flax.step import dispatch, train_step
from ti_flax.training import resident, validation

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


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def skip_networks(monkeypatch) -> None:
    """Runs of the trainer without the networks, in a second instead of ten.

    Gradients are a function of (seed, step, rows), as those of the networks are; rows,
    optimizer, dispatches and files are the trainer's own.
    """
    random = np.random.default_rng(0)
    table = jnp.asarray(0.02 * random.standard_normal((514, 32), np.float32))

    def load(self, component, *placement):
        return {"embeddings": {"token_embedding": {"embedding": table}}}

    def encode_pictures(model, params, images, *rest):
        return np.zeros((len(images), 1, 1, 1, 8), np.float32)

    def draw_batch(bank, number, *rest):
        return jax.vmap(jax.random.fold_in)(bank.keys, number)

    def gradients(rows, frozen, keys, recipe):
        def loss(rows, key):
            target = jax.random.normal(key, rows.shape)
            return jnp.square(rows - target).mean()

        losses, grads = jax.vmap(jax.value_and_grad(loss))(rows["text_encoder"], keys)
        return losses, {"text_encoder": grads}

    monkeypatch.setattr(base_model.BaseModel, "load", load)
    monkeypatch.setattr(resident, "encode_pictures", encode_pictures)
    monkeypatch.setattr(step_bank, "draw_batch", draw_batch)
    monkeypatch.setattr(train_step, "gradients", gradients)
    compile_train_steps = dispatch.compile_train_steps
    monkeypatch.setattr(
        dispatch,
        "compile_train_steps",
        lambda recipe, shapes: compile_train_steps(recipe),
    )
    monkeypatch.setattr(
        validation, "compile_validation", lambda *run: lambda done, state: None
    )
