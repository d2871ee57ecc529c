"""The model inside the package, as PyTorch users and as we load it."""

import numpy as np
import pytest

import ti_flax
from ti_flax.formats import find
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.publishing import concept_folder
from ti_flax.quickstart import settings
from ti_flax.text.initial_rows import initial_rows, initializer_ids
from ti_flax.text.tokenizer import load_tokenizer

PROMPTS = ["a photo of a <bumbee>", "a rendering of the <bumbee> on a blue background"]
STEPS = 20


def test_it_fits_in_twelve_megabytes_of_float16():
    files = [path for path in settings.MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    # It opens and loads by the code path of every other model.
    model = base_model.open_model(str(settings.MODEL))
    for component in ("text_encoder", "unet", "vae"):
        assert model.load(component)


@pytest.mark.parametrize(
    ("num_vectors", "name"), [(1, find.BIN_NAME), (3, find.SAFETENSORS_NAME)]
)
def test_pytorch_makes_the_same_pictures(num_vectors, name, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = base_model.open_model(str(settings.MODEL))
    embeddings = model.load("text_encoder")["embeddings"]
    rows = initial_rows(
        np.asarray(embeddings["token_embedding"]["embedding"]),
        initializer_ids(
            load_tokenizer(settings.MODEL / "tokenizer"), "striped critter"
        ),
        num_vectors,
        jitter=1.0,
        seed=0,
    )
    learned = find.Embedding("<bumbee>", {"text_encoder": rows})
    concept_folder.export_concept(
        tmp_path, learned, "object", np.zeros((1, 8, 8, 3), np.uint8)
    )

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(settings.MODEL)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(tmp_path, weight_name=name)
    noise = sampling.draw_noise(np.array([5, 5], np.uint32), (16, 16, 4))
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=STEPS,
        latents=torch.tensor(np.moveaxis(np.asarray(noise), -1, 1)),
        output_type="np",
    ).images
    ours = ti_flax.generate_images(
        model=str(settings.MODEL),
        embedding=str(tmp_path / name),
        prompt=PROMPTS,
        seed=5,
        steps=STEPS,
        progress=False,
    )
    error = np.abs(np.round(255 * theirs) - np.stack([np.asarray(i) for i in ours]))
    # Pictures of 8 bits, sums in another order: a grey level now and then.
    assert error.mean() < 0.5
    assert np.stack([np.asarray(i) for i in ours]).std() > 20  # a picture, not a wall
