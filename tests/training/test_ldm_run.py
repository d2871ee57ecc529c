"""Latent diffusion with BERT from pictures to files, on a tiny random model."""

import json
import re
import shutil
import warnings

import jax
import numpy as np
import peer_loaders
import pytest
import runs

from ti_flax import convert_embedding, describe_embedding, generate_images
from ti_flax.formats import find, registry
from ti_flax.generation import sampling, verify
from ti_flax.models import base_model, random_model
from ti_flax.runtime.errors import UserError
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

ENCODER = "text_encoder"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ldm") / "model"
    random_model.write_random_model(folder, "tiny_ldm")
    return folder


@pytest.fixture(scope="module")
def trained(model, pictures, tmp_path_factory):
    """A run of 6 steps: its folder, and the word."""
    folder = tmp_path_factory.mktemp("run")
    keys = {"save_as_full_pipeline": True, "validation_prompt": "a <toy>"}
    return folder, runs.learn(model, pictures, folder, num_validation_images=1, **keys)


def test_a_word_is_learned_and_written_for_programs_that_know_the_model(
    trained, tmp_path
):
    folder, learned = trained
    assert learned.widths == {ENCODER: 1280}
    files = [folder / find.SAFETENSORS_NAME, folder / find.BIN_NAME]
    assert not (folder / find.SDXL_NAME).exists()
    files += convert_embedding(source=folder, to="rinongal", output=tmp_path)
    for file in files:
        read = find.load_embedding(file)
        assert read.token == "<toy>"
        np.testing.assert_array_equal(read.rows[ENCODER], learned.rows[ENCODER])
    for name, layout in registry.FORMATS.items():
        if not layout.ldm:
            with pytest.raises(UserError, match=r"convert to|SDXL has two"):
                registry.write(tmp_path / f"new-{name}", name, learned)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    norms = np.linalg.norm(learned.rows[ENCODER], axis=-1)
    np.testing.assert_allclose(last["row_norm"], norms, rtol=1e-5)
    assert list((folder / "samples").glob("*/*.png"))


def test_inspect_names_the_model_and_its_nearest_words(trained, model):
    text = describe_embedding(file=trained[0], model=str(model))
    assert "fits: latent diffusion with BERT" in text
    # Six steps on, the words are near to the pieces that they started from.
    assert re.findall(r"nearest to vector \d: (\S+) [01]", text) == ["t", "t"]


def test_the_original_code_puts_the_rows_in_place_of_its_word(trained, tmp_path):
    """By the rules of EmbeddingManager.forward, stated anew, with two vectors."""
    torch = pytest.importorskip("torch")
    folder, learned = trained
    [file] = convert_embedding(source=folder, to="rinongal", output=tmp_path)
    [(word, rows)] = peer_loaders.rinongal(file).items()
    data = torch.load(file, weights_only=False)
    # The only token of "*" by bert-base-uncased, between its marks.
    ids = torch.tensor([[101, 1037, 1008, 2006, 1037, 13523, 102, 0, 0]])
    [placed] = torch.where(ids[0] == data["string_to_token"][word].to("cpu"))
    assert word == "*" and placed.tolist() == [2]
    embedded = torch.arange(9.0)[:, None].expand(9, 1280)
    [at] = placed.tolist()
    replaced = torch.cat([embedded[:at], torch.tensor(rows), embedded[at + 1 :]])[:9]
    np.testing.assert_array_equal(replaced[2:4], learned.rows[ENCODER])
    assert replaced[4:, 0].tolist() == [3, 4, 5, 6, 7]


def test_what_the_original_code_wrote_starts_a_run_and_draws(model, pictures, tmp_path):
    torch = pytest.importorskip("torch")
    rows = np.random.default_rng(0).normal(size=(3, 1280)).astype(np.float32)
    data = {
        "string_to_token": {"*": torch.tensor(1008)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.tensor(rows)}),
    }
    torch.save(data, tmp_path / "embeddings_gs-6099.pt")
    keys = {"initializer_token": None, "num_vectors": 3, "learning_rate": 1e-30}
    keys["initializer_embedding"] = str(tmp_path / "embeddings_gs-6099.pt")
    learned = runs.learn(model, pictures, tmp_path / "run", max_train_steps=1, **keys)
    np.testing.assert_array_equal(learned.rows[ENCODER], rows)
    given = {"model": str(model), "steps": 2, "progress": False, "prompt": "a <cat>"}
    word = f"<cat>={tmp_path / 'embeddings_gs-6099.pt'}"
    [picture] = generate_images(embedding=word, **given)
    [again] = generate_images(embedding=f"<cat>={tmp_path / 'run'}", **given)
    np.testing.assert_array_equal(picture, again)


def test_rows_of_this_width_are_not_those_of_sdxls_second_encoder(
    trained, pictures, tmp_path
):
    random_model.write_random_model(tmp_path / "sdxl", "tiny_sdxl")
    keys = {"initializer_token": None, "initializer_embedding": str(trained[0])}
    told = r"initializer_embedding: .* is for latent diffusion with BERT .* this model"
    with pytest.raises(UserError, match=told):
        runs.learn(tmp_path / "sdxl", pictures, tmp_path / "run", **keys)


def test_verify_says_that_diffusers_loads_no_words(trained, model):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match="LDMTextToImagePipeline loads no learned word"):
        verify.verify_embedding(source=trained[0], model=str(model))


@pytest.mark.parametrize("way", ["whole pipeline", "lines of the card"])
def test_diffusers_draws_our_picture(trained, model, way):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    folder, _ = trained
    noise = np.asarray(sampling.draw_noise(np.array([3], np.uint32), (16, 16, 4)))
    latents = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    given = {"num_inference_steps": 4, "latents": latents, "output_type": "np"}
    # The pipeline takes 8 pixels for a latent; the tiny autoencoder has 2.
    given |= {"height": 128, "width": 128}
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        source = folder if way == "whole pipeline" else model
        pipeline = diffusers.LDMTextToImagePipeline.from_pretrained(source)
        pipeline.set_progress_bar_config(disable=True)
        if way == "whole pipeline":
            prompt = ["a photo of <toy> <toy>_1"]
            [theirs] = pipeline(prompt, guidance_scale=6, **given).images
        else:
            theirs = drawn_by_the_card(folder, pipeline, given)
    [ours] = generate_images(
        model=str(model),
        embedding=str(folder),
        prompt="a photo of <toy>",
        seed=3,
        steps=4,
        guidance_scale=6.0,
        progress=False,
    )
    assert np.ptp(theirs) > 0.1
    assert np.abs(np.round(255 * theirs) - np.asarray(ours, np.float32)).max() <= 1


def drawn_by_the_card(folder, pipeline, given) -> np.ndarray:
    """By the lines of README.md, whose picture is drawn as `given` says."""
    import safetensors.torch
    import torch

    card = (folder / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*)\n```", card, re.DOTALL)[1]
    lines = lines.replace('"learned_embeds', f'"{folder}/learned_embeds')
    *teaching, drawing = lines.split("\n")
    names = {"pipeline": pipeline, "safetensors": safetensors, "torch": torch}
    exec("\n".join(teaching), names)
    drawing = drawing.replace("guidance_scale=6", "guidance_scale=6, **given")
    return eval(drawing, {**names, "given": given})


def test_pytorchs_weights_and_old_names_are_those_of_the_folder(model, tmp_path):
    """The Hub's repository has .bin files of 2022, with what nobody reads in them."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    shutil.copytree(model, tmp_path / "hub")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for part, name in (("bert", "model"), ("unet", ""), ("vqvae", "")):
        place = tmp_path / "hub" / part
        file = place / f"{name or 'diffusion_pytorch_model'}.safetensors"
        tensors = load_file(file)
        if part == "vqvae":
            for new, before in old.items():
                tensors = {
                    re.sub(rf"(attentions\.0\.){new}\.", rf"\1{before}.", key): value
                    for key, value in tensors.items()
                }
        if part == "bert":
            tensors["to_logits.weight"] = torch.zeros(160, 1280)
            tensors["to_logits.bias"] = torch.zeros(160)
        pickled = "pytorch_model.bin" if name else "diffusion_pytorch_model.bin"
        torch.save(tensors, place / pickled)
        file.unlink()
    ours, theirs = (
        base_model.open_model(str(folder)) for folder in (model, tmp_path / "hub")
    )
    for part in ours.family.parts:
        for one, two in zip(
            jax.tree.leaves(ours.load(part)),
            jax.tree.leaves(theirs.load(part)),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)


def test_a_tokenizer_of_the_published_length_makes_77_tokens(model):
    opened = base_model.open_model(str(model))
    [encoder] = opened.family.text_encoders
    tokenizer = load_tokenizer(opened.tokenizer(encoder), encoder.pieces)
    tokenize = PromptTokenizer(tokenizer, encoder.vocab_size, {})
    tokenize.check_length(encoder.length)
    assert tokenize([""]).shape == (1, 77)
