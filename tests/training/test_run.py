"""`python -m ti_flax.train` from pictures to files."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import runs
import yaml

import ti_flax
from ti_flax.config import run_config
from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.formats import find, registry
from ti_flax.models import base_model
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer
from ti_flax.training import run

CONFIGS = Path(__file__).parents[2] / "configs"
PROMPTS = ["a <toy> on a table", "<toy>", "two photos of one <toy>, and no other"]


@pytest.fixture
def arguments(tiny_model, pictures, tmp_path):
    """A command line that works, as key -> value."""
    return {
        "pretrained_model_name_or_path": str(tiny_model),
        "train_data_dir": str(pictures),
        "placeholder_token": "<toy>",
        "initializer_token": "toy",
        "resolution": "32",
        "train_batch_size": "8",
        "max_train_steps": "3",
        "output_dir": str(tmp_path / "out"),
    }


def to_argv(arguments):
    return [word for key, value in arguments.items() for word in (f"--{key}", value)]


def learn(tiny_model, pictures, output_dir, **keys):
    settings = run_config.Config(
        pretrained_model_name_or_path=str(tiny_model),
        train_data_dir=pictures,
        output_dir=output_dir,
        placeholder_token="<toy>",
        initializer_token="toy",
        resolution=32,
        train_batch_size=8,
        max_train_steps=3,
        **keys,
    )
    return run.train_concepts(settings, progress=False)[0].word


@pytest.fixture
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture(scope="session", params=[1, 3])
def learned(request, tiny_model, pictures, tmp_path_factory):
    """The folder of a run with one and with three vectors, and what it learned.

    Without the networks: the command below has them, and that a run with them repeats
    bit for bit is in test_single_file_run.py.
    """
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        runs.skip_networks(patch)
        return folder, learn(tiny_model, pictures, folder, num_vectors=request.param)


# Whatever asks for PyTorch or diffusers fails, as if they were not installed.
_WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "accelerate")))
runpy.run_module("ti_flax.train", run_name="__main__", alter_sys=True)
"""


def test_command_trains_without_torch_and_writes_every_file(arguments):
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT_TORCH, *to_argv(arguments)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    output_dir = Path(arguments["output_dir"])
    assert sorted(path.name for path in output_dir.iterdir()) == [
        "README.md",
        "checkpoints",
        "concept_images",
        "config.yaml",
        "learned_embeds.bin",
        "learned_embeds.safetensors",
        "logs",
        "metrics.jsonl",
        "report.html",
        "token_identifier.txt",
        "type_of_concept.txt",
        "validation.jsonl",
        # "toy" is three pieces to this vocabulary of bytes.
        "warnings.txt",
        "words",
    ]
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert 0 < line["loss"] < 10 and line["grad_norm"] > 0
        assert line["learning_rate"] == pytest.approx(2e-3)
        assert len(line["row_norm"]) == 1
    assert "\r" not in ran.stderr  # no bar in a pipe


@pytest.mark.usefixtures("no_networks")
def test_a_runs_own_config_repeats_it_bit_for_bit(learned, tmp_path):
    folder, embedding = learned
    again = run_config.load_config(
        ["--config", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "b")]
    )
    repeated = run.train_concepts(again, progress=False)[0]
    np.testing.assert_array_equal(
        repeated.rows["text_encoder"], embedding.rows["text_encoder"]
    )
    for name in (find.BIN_NAME, find.SAFETENSORS_NAME, "metrics.jsonl"):
        ours, first = ((f / name).read_bytes() for f in (tmp_path / "b", folder))
        if name == "metrics.jsonl":
            ours, first = (
                [
                    {k: v for k, v in json.loads(line).items() if "second" not in k}
                    for line in content.splitlines()
                ]
                for content in (ours, first)
            )
        assert ours == first


def test_exports_say_how_they_came_about(learned, tiny_model, pictures, tmp_path):
    folder, embedding = learned
    found = registry.read(folder / find.SAFETENSORS_NAME).embedding.provenance
    assert (found["base_model"], found["steps"]) == (tiny_model.name, "3")
    assert found["version"] == ti_flax.__version__
    model = base_model.open_model(str(tiny_model))
    assert found["base_model_sha256"] == model.fingerprint()
    trained_on = read_pictures(pictures, Cropping(32)).images
    digest = hashlib.sha256(b"".join(map(bytes, trained_on))).hexdigest()
    assert found["pictures_sha256"] == digest
    settings = json.loads(found["settings"])
    assert settings["num_vectors"] == embedding.num_vectors
    assert settings["initializer_token"] == "toy"
    # Nothing of this machine travels with the rows or stands in the card.
    for text in (json.dumps(found), (folder / "README.md").read_text()):
        for secret in (tiny_model.parent, pictures, folder, os.path.expanduser("~/")):
            assert str(secret) not in text


def test_the_exported_rows_are_those_trained(learned):
    folder, embedding = learned
    assert embedding.token == "<toy>"
    for name in (find.BIN_NAME, find.SAFETENSORS_NAME):
        read = find.load_embedding(folder / name)
        assert read.token == "<toy>"
        np.testing.assert_array_equal(
            read.rows["text_encoder"], embedding.rows["text_encoder"]
        )


@pytest.mark.parametrize("name", [find.BIN_NAME, find.SAFETENSORS_NAME])
def test_pytorch_conditions_on_the_word_as_we_do(learned, tiny_model, name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    folder, embedding = learned
    if name == find.BIN_NAME:
        loaded = torch.load(folder / name, weights_only=True)
        np.testing.assert_array_equal(
            loaded["<toy>"].numpy(), embedding.rows["text_encoder"]
        )

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_model, safety_checker=None
    )
    pipeline.load_textual_inversion(folder, weight_name=name)
    texts = [pipeline.maybe_convert_prompt(p, pipeline.tokenizer) for p in PROMPTS]
    ids = pipeline.tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = pipeline.text_encoder(ids)[0].numpy()

    model = base_model.open_model(str(tiny_model))
    tokenize = PromptTokenizer(
        load_tokenizer(tiny_model / "tokenizer"),
        model.family.text_encoders[0].vocab_size,
        {"<toy>": embedding.num_vectors},
    )
    context = model.family.text_encoders[0].module.apply(
        {"params": model.load("text_encoder")},
        jnp.asarray(tokenize(PROMPTS)),
        jnp.broadcast_to(
            embedding.rows["text_encoder"],
            (len(PROMPTS), *embedding.rows["text_encoder"].shape),
        ),
    )
    np.testing.assert_allclose(context, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("no_networks")
def test_training_goes_on_from_an_embedding_file(
    learned, tiny_model, pictures, tmp_path
):
    folder, embedding = learned
    settings = run_config.Config(
        pretrained_model_name_or_path=str(tiny_model),
        train_data_dir=pictures,
        output_dir=tmp_path,
        placeholder_token="<toy>",
        initializer_embedding=folder / find.BIN_NAME,
        num_vectors=embedding.num_vectors,
        resolution=32,
        train_batch_size=8,
        max_train_steps=1,
        learning_rate=1e-9,
    )
    went_on = run.train_concepts(settings, progress=False)[0]
    # One step of Adam moves each number by the learning rate at most.
    np.testing.assert_allclose(
        went_on.rows["text_encoder"], embedding.rows["text_encoder"], rtol=0, atol=2e-8
    )


@pytest.mark.usefixtures("no_networks")
def test_overwriting_replaces_the_files_of_a_run(tiny_model, pictures, tmp_path):
    tmp_path.joinpath("notes.txt").write_text("mine")
    first = learn(tiny_model, pictures, tmp_path, overwrite_output_dir=True)
    second = learn(tiny_model, pictures, tmp_path, overwrite_output_dir=True, seed=1)
    assert not np.array_equal(first.rows["text_encoder"], second.rows["text_encoder"])
    read = find.load_embedding(tmp_path / find.BIN_NAME)
    np.testing.assert_array_equal(
        read.rows["text_encoder"], second.rows["text_encoder"]
    )
    assert tmp_path.joinpath("notes.txt").read_text() == "mine"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_load_and_open_with_their_command(path):
    text = path.read_text()
    settings = run_config.load_config(["--config", str(path)])
    opening = "".join(
        itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(True))
    )
    assert f"--config configs/{path.name}\n" in opening
    assert set(yaml.safe_load(text)) <= set(run_config.Config.model_fields)
    assert settings.placeholder_token
