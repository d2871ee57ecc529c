"""A run from a model in one file is that from its folder, bit for bit."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
import runs
import single_files

from ti_flax import generate_images
from ti_flax.config import run_config
from ti_flax.formats import find
from ti_flax.models import base_model, clip_tokenizer
from ti_flax.models.opening import Choices
from ti_flax.pickles import torch_zip
from ti_flax.publishing import full_pipeline
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding
from ti_flax.text.tokenizer import load_tokenizer
from ti_flax.training import run as training_run

V_PRED = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}


class Made(NamedTuple):
    folder: Path
    file: Path
    tensors: single_files.Arrays


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A kind's folder and its file, with the vocabulary of CLIP."""

    @functools.cache
    def make(kind: str) -> Made:
        folder = tmp_path_factory.mktemp(kind) / "model"
        own = single_files.small_configs(kind)
        single_files.write_folder(folder, own)
        tensors = single_files.tensors_of(folder, own)
        file = folder.with_name("model.safetensors")
        said = {"modelspec.predict_key": "v"} if kind == "sd2" else {}
        single_files.save(file, {**tensors, **single_files.others(kind)}, said)
        return Made(folder, file, tensors)

    return make


def learn(model: Path, pictures: Path, folder: Path, **keys):
    given = {"checkpointing_steps": 6, "learning_rate": 1e-4, **keys}
    config = runs.make_config(model, pictures, folder, **given)
    training_run.train_concepts(config, progress=False)
    return find.load_embedding(folder)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("kind", ("sd1", pytest.param("sdxl", marks=pytest.mark.slow)))
def test_six_steps_from_a_file_are_those_from_its_folder(
    kind: str, models, pictures: Path, tmp_path: Path
) -> None:
    made = models(kind)
    theirs = learn(made.folder, pictures, tmp_path / "folder")
    ours = learn(made.file, pictures, tmp_path / "file")
    assert ours.rows.keys() == theirs.rows.keys()
    for name, rows in theirs.rows.items():
        np.testing.assert_array_equal(ours.rows[name], rows)
    assert losses(tmp_path / "file") == losses(tmp_path / "folder")
    for key in ("prediction_type", "resolution", "steps", "settings"):
        assert ours.provenance[key] == theirs.provenance[key]
    assert ours.provenance["base_model"] == "model.safetensors"


def test_a_ckpt_is_the_same_file(models, tmp_path: Path) -> None:
    """Nothing in its pickle is executed: `pickles` has the tests."""
    made = models("sd1")
    file = tmp_path / "model.ckpt"
    state = {**made.tensors, **single_files.others("sd1")}
    torch_zip.save(file, {"state_dict": state, "epoch": 3, "global_step": 470000})
    theirs, ours = (base_model.open_model(str(path)) for path in (made.folder, file))
    assert ours.source.contents.global_step == 470000
    assert ours.family.parts == theirs.family.parts
    for part in ours.family.parts:
        jax.tree.map(np.testing.assert_array_equal, ours.load(part), theirs.load(part))


def whole_pipeline(file: Path, folder: Path, **choices) -> base_model.BaseModel:
    """Writes what save_as_full_pipeline writes; the file's model."""
    model = base_model.open_model(str(file), choices=Choices(**choices))
    encoders = model.family.text_encoders
    rows = {each.name: np.ones((1, each.width), np.float32) for each in encoders}
    full_pipeline.write(
        folder,
        model,
        {each.name: load_tokenizer(model.tokenizer(each)) for each in encoders},
        Embedding("<toy>", rows),
    )
    return model


def test_a_whole_pipeline_comes_of_a_file(models, tmp_path: Path) -> None:
    """Its numbers in the file's type, but float8 in half precision."""
    tensors = dict(models("sdxl").tensors)
    for key, array in tensors.items():
        narrow = ml_dtypes.float8_e4m3fn if ".input_blocks." in key else np.float16
        tensors[key] = array.astype(narrow)
    file = single_files.save(tmp_path / "m.safetensors", {**tensors, **V_PRED})
    single = whole_pipeline(file, tmp_path / "whole")
    whole = base_model.open_model(str(tmp_path / "whole"))
    assert whole.scheduler == single.scheduler
    assert whole.scheduler["prediction_type"] == "v_prediction"
    assert whole.scheduler["rescale_betas_zero_snr"] is True
    for part in ("unet", "vae"):
        jax.tree.map(np.testing.assert_array_equal, whole.load(part), single.load(part))
        for tensor in whole.source.tensors(part):
            assert tensor.dtype == np.float16
    for encoder in whole.family.text_encoders:
        table = np.asarray(encoder.table(whole.load(encoder.name)))
        assert len(table) == single_files.VOCABULARY + 1
        assert (table[-1:] == 1).all()
    for name in ("feature_extractor", "safety_checker"):
        assert not (tmp_path / "whole" / name).exists()


def test_diffusers_takes_a_pipeline_of_a_file(models, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    whole_pipeline(models("sd1").file, tmp_path, prediction_type="v_prediction")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.tokenizer.pad_token == clip_tokenizer.END
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline.unet.conv_in.weight.new_ones((1, 4, 16, 16))
    picture = pipeline(
        "a <toy>", num_inference_steps=3, latents=latents, output_type="np"
    ).images[0]
    assert np.isfinite(picture).all() and picture.std() > 0


def test_pictures_of_a_file_are_those_of_its_folder(models) -> None:
    made = models("sd2")
    keys = {"prompt": "a toy", "steps": 3, "width": 16, "height": 16, "progress": False}
    ours, theirs = (
        generate_images(model=m, **keys)[0] for m in (made.file, made.folder)
    )
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    keys["prediction_type"] = "epsilon"
    other, again = (
        generate_images(model=m, **keys)[0] for m in (made.file, made.folder)
    )
    assert np.asarray(other).tolist() != np.asarray(theirs).tolist()
    np.testing.assert_array_equal(np.asarray(other), np.asarray(again))


# With networks that cost nothing


def test_the_keys_change_a_run_as_the_files_signs_would(
    models, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.skip_networks(monkeypatch)
    made = models("sd1")
    keys = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    ours = learn(made.folder, pictures, tmp_path / "keys", **keys)
    marked = single_files.save(tmp_path / "v.safetensors", {**made.tensors, **V_PRED})
    theirs = learn(marked, pictures, tmp_path / "marked")
    name = "text_encoder"
    np.testing.assert_array_equal(ours.rows[name], theirs.rows[name])
    plain = learn(made.file, pictures, tmp_path / "plain")
    assert not np.array_equal(plain.rows[name], ours.rows[name])
    assert ours.provenance["prediction_type"] == "v_prediction"
    settings = json.loads(ours.provenance["settings"])
    assert settings["prediction_type"] == "v_prediction"


def test_a_run_resumes_with_the_same_file_alone(
    models, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.skip_networks(monkeypatch)
    file = models("sd1").file
    learn(file, pictures, tmp_path / "run", max_train_steps=2, checkpointing_steps=2)
    again = {"resume_from_checkpoint": "latest", "max_train_steps": 4}
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(file.read_bytes())
    learn(moved, pictures, tmp_path / "run", **again)
    # One number of one tensor, far from the header.
    changed = bytearray(moved.read_bytes())
    changed[-1000] ^= 1
    moved.write_bytes(changed)
    with pytest.raises(UserError, match="was made with the fingerprint"):
        learn(moved, pictures, tmp_path / "run", **again | {"max_train_steps": 5})
    with pytest.raises(UserError, match="prediction_type was None, is v_prediction"):
        keys = {**again, "prediction_type": "v_prediction"}
        learn(file, pictures, tmp_path / "run", **keys)


def test_what_decided_is_told_in_one_line(models, caplog) -> None:
    file = str(models("sd1").file)
    with caplog.at_level(logging.INFO, "ti_flax"):
        base_model.open_model(file)
        base_model.open_model(file, choices=Choices(prediction_type="epsilon"))
    assert caplog.messages == [
        "model.safetensors: Stable Diffusion 1.x, prediction_type epsilon (nothing in "
        "or beside the file says otherwise)",
        "model.safetensors: Stable Diffusion 1.x, prediction_type epsilon (the run's "
        "key prediction_type)",
    ]


def test_kohyas_key_is_understood(models) -> None:
    file = models("sd1").file
    keys = runs.keys(file, Path("pictures"), Path("out"))
    config = run_config.Config(**keys, v_parameterization=True)
    model = base_model.open_model(str(file), choices=Choices.of(config))
    assert model.scheduler["prediction_type"] == "v_prediction"
    assert model.family.process.prediction_type == "v_prediction"
