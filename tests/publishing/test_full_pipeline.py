"""A whole pipeline with the word in it, as PyTorch users load it."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import safetensors

from ti_flax.config import run_config
from ti_flax.formats import registry
from ti_flax.models import base_model
from ti_flax.publishing import full_pipeline, results
from ti_flax.quickstart.settings import MODEL
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding
from ti_flax.text.tokenizer import load_tokenizer

TOKEN = "<bumbee>"


def learned(vectors: int) -> Embedding:
    width = base_model.open_model(str(MODEL)).family.text_encoders[0].width
    rng = np.random.default_rng(vectors)
    rows = rng.standard_normal((vectors, width), np.float32)
    return Embedding(TOKEN, {"text_encoder": rows})


def write(folder, vectors, model_folder=MODEL, variant=None):
    model = base_model.open_model(str(model_folder), variant=variant)
    tokenizer = load_tokenizer(MODEL / "tokenizer")
    full_pipeline.write(folder, model, {"text_encoder": tokenizer}, learned(vectors))
    # The caller's tokenizer has not learned the word.
    assert TOKEN not in tokenizer.get_vocab()
    return folder


@pytest.mark.parametrize("vectors", [1, 3])
def test_pytorch_loads_it_with_no_further_step(tmp_path, vectors):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    write(tmp_path / "whole", vectors)
    whole = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    # The other way to the same: the base model, and then the embedding.
    base = diffusers.StableDiffusionPipeline.from_pretrained(MODEL)
    registry.write(tmp_path / "rows", "diffusers", learned(vectors))
    base.load_textual_inversion(str(tmp_path / "rows"))
    pictures = []
    for pipeline in (whole, base):
        pipeline.set_progress_bar_config(disable=True)
        prompt = f"a photo of a {TOKEN} on the beach"
        found = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
        assert f"{TOKEN}_{vectors}" not in found
        assert (f"{TOKEN}_{vectors - 1}" in found) == (vectors > 1)
        context, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        latents = context.new_ones((1, 4, 16, 16))
        image = pipeline(
            prompt, num_inference_steps=2, latents=latents, output_type="np"
        ).images
        pictures.append((context.detach().numpy(), image))
    for ours, theirs in zip(*pictures, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_our_own_code_loads_it_too(tmp_path):
    rows = learned(2).rows["text_encoder"]
    base = base_model.open_model(str(MODEL))
    model = base_model.open_model(str(write(tmp_path, 2)))
    size = base.family.text_encoders[0].vocab_size
    assert model.family.text_encoders[0].vocab_size == size + 2
    table, before = (
        np.asarray(m.load("text_encoder")["embeddings"]["token_embedding"]["embedding"])
        for m in (model, base)
    )
    np.testing.assert_array_equal(table, np.concatenate([before, rows]))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.convert_tokens_to_ids([TOKEN, f"{TOKEN}_1"]) == [size, size + 1]


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_copied_under_the_names_without_it(tmp_path, shards):
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    for part, stem in [
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ]:
        file = base / part / f"{stem}.safetensors"
        file.rename(base / part / f"{stem}.fp16.safetensors")
    unet = base / "unet"
    if shards:
        whole = unet / "diffusion_pytorch_model.fp16.safetensors"
        shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
        with safetensors.safe_open(whole, "numpy") as opened:
            index = {"metadata": {}, "weight_map": dict.fromkeys(opened.keys(), shard)}
        whole.rename(unet / shard)
        name = "diffusion_pytorch_model.safetensors.index.fp16.json"
        (unet / name).write_text(json.dumps(index))
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "config.json").write_text("{}")
    write(tmp_path / "whole", 1, base, "fp16")
    loaded = base_model.open_model(str(tmp_path / "whole")).load("unet")
    wanted = base_model.open_model(str(MODEL)).load("unet")
    for ours, theirs in zip(*map(leaves, (loaded, wanted)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # What the base model has beside the networks comes along.
    assert (tmp_path / "whole" / "safety_checker" / "config.json").is_file()
    index = json.loads((tmp_path / "whole" / "model_index.json").read_text())
    assert index["requires_safety_checker"] and index["feature_extractor"][0] is None


def leaves(tree: dict) -> list:
    import jax

    return jax.tree.leaves(tree)


def finish(folder):
    """The end of a run that was asked for the whole pipeline."""
    config = run_config.Config(
        pretrained_model_name_or_path=str(MODEL),
        train_data_dir="pictures",
        output_dir=str(folder),
        placeholder_token=TOKEN,
        initializer_token="heart",
        save_as_full_pipeline=True,
    )
    tokenizers = {"text_encoder": load_tokenizer(MODEL / "tokenizer")}
    model = base_model.open_model(str(MODEL))
    results.finish(config, model, tokenizers, learned(1))


@contextlib.contextmanager
def no_file_longer_than(size):
    """What a full disk is to a writer in Python or in Rust, without filling one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def line_of_a_failed_finish(folder):
    with pytest.raises(UserError) as caught:
        finish(folder)
    line = str(caught.value)
    assert line.startswith("cannot write the whole pipeline") and "\n" not in line
    assert line.endswith("run again with resume_from_checkpoint latest")
    # Nobody takes for a pipeline what is none.
    assert not (folder / "model_index.json").exists()
    return line


@pytest.mark.parametrize(
    "part",
    ["tokenizer", "text_encoder", "unet", "vae"],
)
def test_a_disk_that_is_full_is_one_line(tmp_path, part):
    """Whatever library writes the file that has no room."""
    finish(tmp_path / "whole")
    files = (tmp_path / "whole" / part).iterdir()
    largest = max(file.stat().st_size for file in files)
    with no_file_longer_than(largest - 1):
        line = line_of_a_failed_finish(tmp_path / "other")
    assert "too large" in line or "No space" in line, line
    assert not list((tmp_path / "other").rglob("*.tmp"))
    finish(tmp_path / "other")
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def contents(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize(
    "name", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"]
)
def test_a_file_where_a_folder_has_to_be_is_one_line_and_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    line = line_of_a_failed_finish(tmp_path)
    assert str(tmp_path / name) in line and "exists" in line
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_folder_where_a_file_has_to_be_is_one_line(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "notes").write_text("mine")
    line_of_a_failed_finish(tmp_path)
    assert (tmp_path / name / "notes").read_text() == "mine"
