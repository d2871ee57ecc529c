"""SDXL from pictures to files that every program reads, on a tiny random model."""

import json
import logging
import warnings

import numpy as np
import peer_loaders
import pytest
import runs
import slots
from safetensors.numpy import load_file

from ti_flax import generate_images
from ti_flax.formats import find
from ti_flax.generation import sampling
from ti_flax.models import random_model
from ti_flax.runtime import chips, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.training.recipe import make_recipe

ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    random_model.write_random_model(folder, "tiny_sdxl")
    return folder


@pytest.fixture(scope="module")
def trained(model, pictures, tmp_path_factory):
    """A run of 6 steps: its folder, and the word."""
    folder = tmp_path_factory.mktemp("run")
    keys = {"save_as_full_pipeline": True, "validation_prompt": "a <toy>"}
    return folder, runs.learn(model, pictures, folder, num_validation_images=1, **keys)


def test_rows_of_both_encoders_are_learned_and_written(trained):
    folder, learned = trained
    assert {name: rows.shape for name, rows in learned.rows.items()} == {
        "text_encoder": (2, 32),
        "text_encoder_2": (2, 48),
    }
    for file in (find.SAFETENSORS_NAME, find.BIN_NAME, find.SDXL_NAME):
        read = find.load_embedding(folder / file, None)
        for name in ENCODERS:
            np.testing.assert_array_equal(read.rows[name], learned.rows[name])
    for index, name in enumerate(ENCODERS):
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        norms = np.linalg.norm(learned.rows[name], axis=-1)
        np.testing.assert_allclose(line["row_norm"][2 * index :][:2], norms, rtol=1e-5)


def test_web_interfaces_read_the_file_of_both_encoders(trained):
    folder, learned = trained
    tensors = load_file(folder / find.SDXL_NAME)
    assert set(tensors) == {"clip_l", "clip_g"}
    for key, name in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        np.testing.assert_array_equal(tensors[key], learned.rows[name])
    pytest.importorskip("torch")
    for key, name in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        rows = learned.rows[name]
        loaded = peer_loaders.comfyui(folder / find.SDXL_NAME, key, rows.shape[1])
        np.testing.assert_array_equal(loaded, rows)


@pytest.mark.slow
def test_a_resumed_run_is_that_without_a_stop(model, pictures, trained, tmp_path):
    runs.learn(model, pictures, tmp_path, max_train_steps=4)
    keys = {"max_train_steps": 6, "resume_from_checkpoint": "latest"}
    resumed = runs.learn(model, pictures, tmp_path, **keys)
    for name in ENCODERS:
        np.testing.assert_array_equal(resumed.rows[name], trained[1].rows[name])


@pytest.mark.slow
@pytest.mark.parametrize("key", [{"learning_rate_te2": 0.0}, {"preset": "diffusers"}])
def test_one_encoder_may_be_trained_alone(model, pictures, tmp_path, key):
    runs.learn(model, pictures, tmp_path, max_train_steps=2, **key)
    last = (tmp_path / "validation.jsonl").read_text().splitlines()[-1]
    distance = json.loads(last)["distance"]
    assert min(distance[:2]) > 0
    assert distance[2:] == [0, 0]


@pytest.mark.slow
def test_a_device_without_room_learns_through_a_halved_encoder(
    model, pictures, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(chips, "device_memory", lambda device: 0)
    keys = {"mixed_precision": "bf16", "validation_prompt": "a <toy>"}
    keys |= {"num_validation_images": 1, "max_train_steps": 1}
    learned = runs.learn(model, pictures, tmp_path, **keys)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "computed in bfloat16" in line]) == 1
    for name, width in zip(ENCODERS, (32, 48), strict=True):
        rows = learned.rows[name]
        assert rows.dtype == np.float32 and rows.shape == (2, width)
        assert np.isfinite(rows).all()
    last = (tmp_path / "validation.jsonl").read_text().splitlines()[-1]
    assert min(json.loads(last)["distance"]) > 0


def test_a_rate_for_an_encoder_that_is_not_there_is_told(
    tiny_model, pictures, tmp_path
):
    with pytest.raises(UserError, match=r"learning_rate_te2: .* has 1 text encoder"):
        runs.learn(tiny_model, pictures, tmp_path, learning_rate_te2=1e-3)


def test_a_preset_that_keeps_the_second_encoder_serves_models_with_one(tmp_path):
    folders = (tmp_path / name for name in ("model", "pictures", "out"))
    config = runs.make_config(*folders, preset="diffusers")
    mesh = sharding.make_mesh()
    assert config.learning_rate_te2 == 0
    assert make_recipe(config, slots.FAMILY, 64, mesh).family.name == "sd"
    with pytest.raises(UserError, match="learning_rate_te2"):
        other = config.model_copy(update={"learning_rate_te2": 1e-4})
        make_recipe(other, slots.FAMILY, 64, mesh)


@pytest.mark.slow
def test_the_sizes_of_a_picture_are_told(model, tmp_path):
    """Pictures that are equal after cropping teach other rows where they were not."""
    from PIL import Image

    rows = []
    for name, width in (("square", 16), ("wide", 32)):
        pixels = np.full((16, width, 3), 90, np.uint8)
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        steps = {"max_train_steps": 1, "random_flip": False}
        learned = runs.learn(model, tmp_path / name, tmp_path / f"{name}-out", **steps)
        rows.append(learned.rows["text_encoder"])
    assert np.abs(rows[0] - rows[1]).max() > 0


def test_diffusers_draws_our_picture_from_the_whole_pipeline(trained):
    """With no line of the user's: text_encoder_2 says where a prompt ends."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    folder, _ = trained
    prompt, steps = "a <toy> on a mat", 4
    noise = np.asarray(sampling.draw_noise(np.array([3], np.uint32), (16, 16, 4)))
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        found = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
        [theirs] = pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=5.0,
            latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
            output_type="np",
        ).images
    assert "<toy>_1" in found
    # In the folder's own vocabulary the word's vectors are words of their own.
    [ours] = generate_images(
        model=str(folder),
        prompt=found,
        seed=3,
        steps=steps,
        guidance_scale=5.0,
        progress=False,
    )
    difference = np.abs(np.round(255 * theirs) - np.asarray(ours, np.float32))
    assert difference.max() <= 1


@pytest.mark.slow
def test_a_warning_of_a_prompt_is_given_once(model, pictures, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    runs.learn(
        model, pictures, tmp_path, max_train_steps=1, initializer_token="tall hat"
    )
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "pieces" in line]) == 1
