"""Latent diffusion in its original file; its tokenizer is beside it or on the Hub."""

import copy
from pathlib import Path

import jax
import numpy as np
import pytest
import single_files

from ti_flax import generate_images
from ti_flax.models import (
    base_model,
    bert_tokenizer,
    families,
    known,
    locate,
    single_file,
)
from ti_flax.models.opening import Choices
from ti_flax.models.torch_params import param_shapes
from ti_flax.pickles import torch_zip
from ti_flax.runtime.errors import UserError
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ldm") / "model"
    single_files.write_folder(folder, single_files.configs("ldm"))
    return folder


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    tensors = single_files.tensors_of(folder, single_files.configs("ldm"))
    content = {"state_dict": {**tensors, **single_files.others("ldm")}}
    torch_zip.save(tmp_path / "model.ckpt", content)
    return tmp_path / "model.ckpt"


def test_a_ckpt_is_its_folder(folder: Path, file: Path):
    """Nothing in its pickle is executed: `pickles` has the tests."""
    vocabulary = (folder / "tokenizer" / "vocab.txt").read_bytes()
    (file.parent / "vocab.txt").write_bytes(vocabulary)
    theirs, ours = (base_model.open_model(str(path)) for path in (folder, file))
    assert ours.family.name == "ldm" and ours.family.parts == theirs.family.parts
    for part in ours.family.parts:
        jax.tree.map(np.testing.assert_array_equal, ours.load(part), theirs.load(part))
    assert ours.scheduler["steps_offset"] == 0
    # Of the published model, whose 32 latents are 256 pixels.
    assert ours.family.sample_size == (32, 32)
    ids = [
        PromptTokenizer(load_tokenizer(model.tokenizer(encoder), "bert"), 160, {})
        for model in (ours, theirs)
        for encoder in model.family.text_encoders
    ]
    np.testing.assert_array_equal(*(tokenize(["A cat, on"]) for tokenize in ids))


def test_without_a_vocabulary_one_line_says_where_to_put_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(name_or_path: str, revision: str | None) -> Path:
        raise UserError(f"tokenizer_name: cannot fetch {name_or_path!r}")

    monkeypatch.setattr(locate, "find_tokenizer", unreachable)
    with pytest.raises(UserError) as raised:
        generate_images(model=str(file), prompt="a cat", steps=1, progress=False)
    line = str(raised.value)
    assert line.startswith(f"{file}: has no tokenizer") and "\n" not in line
    assert "google-bert/bert-base-uncased" in line
    assert "put that repository's vocab.txt beside the file" in line


def test_without_one_beside_it_the_hubs_is_taken(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def find(name_or_path: str, revision: str | None) -> Path:
        asked.append(name_or_path)
        return folder / "tokenizer"

    monkeypatch.setattr(locate, "find_tokenizer", find)
    assert bert_tokenizer.find(file) == folder / "tokenizer"
    assert asked == ["google-bert/bert-base-uncased"]


def test_parts_of_one_file_serve_another(file: Path, folder: Path, tmp_path: Path):
    tensors = single_files.tensors_of(folder, single_files.configs("ldm"))
    bare = {
        key: array
        for key, array in tensors.items()
        if not key.startswith("first_stage_model.")
    }
    alone = single_files.save(tmp_path / "bare.safetensors", bare)
    with pytest.raises(UserError, match=r"\(latent diffusion with BERT\) has no vae"):
        base_model.open_model(str(alone))
    choices = Choices(vae=str(file))
    for given in (alone, folder):
        opened = base_model.open_model(str(given), choices=choices)
        params = base_model.open_model(str(folder)).load("vae")
        jax.tree.map(np.testing.assert_array_equal, opened.load("vae"), params)


def test_settings_are_those_of_the_published_shape(folder: Path, file: Path):
    own = copy.deepcopy(single_files.configs("ldm"))
    opened = single_file.open_file(file)
    # No shape tells how many heads make up an inner width: they are 64 wide.
    assert opened.config("text_encoder") == {
        **own["text_encoder"],
        "encoder_attention_heads": 2,
        "head_dim": 64,
    }
    assert opened.config("unet")["cross_attention_dim"] == 48
    assert opened.config("unet")["attention_head_dim"] == 8


def test_the_published_shape_has_as_many_numbers_as_diffusers_modules():
    """diffusers' text encoder also has `to_logits`, which no picture needs."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion

    family = families.make_family(known.LDM)
    ours = {
        part: sum(leaf.size for leaf in jax.tree.leaves(param_shapes(module)))
        for part, module in family.parts.items()
    }
    with torch.device("meta"):
        config = pipeline_latent_diffusion.LDMBertConfig()
        bert = pipeline_latent_diffusion.LDMBertModel(config)
        unet = diffusers.UNet2DConditionModel.from_config(known.LDM["unet"])
    count = {
        "text_encoder": sum(p.numel() for p in bert.model.parameters()),
        "unet": sum(p.numel() for p in unet.parameters()),
    }
    assert {part: ours[part] for part in count} == count
    assert round(count["unet"] / 1e6, 2) == 872.30
