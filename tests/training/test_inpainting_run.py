"""An inpainting model from pictures to pictures, from a folder and from one file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import runs
import single_files
from PIL import Image

from ti_flax import generate_images
from ti_flax.formats import registry
from ti_flax.generation import verify
from ti_flax.text.embedding import Embedding
from ti_flax.training import run as training_run


class Model(NamedTuple):
    folder: Path
    file: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("inpainting") / "model"
    own = single_files.small_configs("sd1")
    own["unet"]["in_channels"] = 9
    single_files.write_folder(folder, own)
    file = folder.with_name("inpainting.safetensors")
    return Model(folder, single_files.save(file, single_files.tensors_of(folder, own)))


@pytest.mark.slow
def test_a_file_learns_and_previews(model: Model, pictures: Path, tmp_path) -> None:
    """From the resident weights, of which the encoder stays for the grey picture."""
    config = runs.make_config(
        model.file,
        pictures,
        tmp_path,
        learning_rate=1e-4,
        mixed_precision="no",
        validation_prompt="a <toy>",
        num_validation_images=1,
    )
    training_run.train_concepts(config, progress=False)
    [made] = generate_images(
        model=str(model.folder),
        embedding=str(tmp_path),
        prompt="a <toy>",
        width=16,
        height=16,
        mixed_precision="no",
        progress=False,
    )
    [preview] = tmp_path.rglob("samples/step_000006/0_0.png")
    with Image.open(preview) as opened:
        ours = np.asarray(opened, np.float32)
    assert ours.std() > 5
    assert np.abs(ours - np.asarray(made)).max() <= 1


@pytest.mark.slow
def test_diffusers_draws_our_picture(model: Model, tmp_path: Path) -> None:
    """With a mask of ones over a grey picture."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    word = np.random.default_rng(0).normal(0, 0.02, (2, 64)).astype(np.float32)
    registry.write(tmp_path, "diffusers", Embedding("<toy>", {"text_encoder": word}))
    checks = verify.verify_embedding(
        source=tmp_path, model=model.file, prompt="a <toy>", steps=3
    )
    assert [check.agrees for check in checks] == [True] * 5, checks
