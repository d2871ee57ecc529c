"""Latent diffusion with BERT is PyTorch's, float32, from token ids to a picture.

The reference is tests/reference/ldm.safetensors, which is held to what PyTorch gives
where it is installed; see record_ldm.py. Tolerances are those of parity.py.
"""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ldm_models
import numpy as np
import pytest
from parity import (
    FORWARD_TOLERANCE,
    GRADIENT_TOLERANCE,
    TRAJECTORY_TOLERANCE,
    Arrays,
    assert_close,
    batch_of,
    stepper,
)
from safetensors.numpy import load_file

from ti_flax.diffusion import scheduler_config
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step.bank import Batch
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

RECORDED = Path(__file__).parents[1] / "reference" / "ldm.safetensors"
ENCODER = "text_encoder"


class Reference(NamedTuple):
    """The model, its params, and what PyTorch computes with it."""

    model: base_model.BaseModel
    params: dict[str, Params]
    recorded: Arrays


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ldm") / "model"
    ldm_models.write(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    model = base_model.open_model(str(folder))
    params = {name: model.load(name) for name in model.family.parts}
    return Reference(model, params, load_file(RECORDED))


def test_the_recording_is_what_pytorch_gives(folder: Path):
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library)
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        import record_ldm

        live = record_ldm.record(folder)
    recorded = load_file(RECORDED)
    assert live.keys() == recorded.keys()
    for name, new in live.items():
        if new.dtype == np.float32:
            assert_close(new, recorded[name], FORWARD_TOLERANCE)
        else:
            # Pictures are of 256 levels, all else whole numbers.
            most = 1 if name.startswith("picture.") else 0
            assert np.abs(new.astype(int) - recorded[name]).max() <= most


def read_batch(recorded: Arrays, index: int) -> Batch:
    """The recorded examples of one step, for one slot."""
    ids = {ENCODER: recorded["ids"][index]}
    return batch_of(recorded, index, ids, np.zeros((2, 6)))


def steps(reference: Reference):
    """`parity.stepper` of the recorded training."""
    read = functools.partial(read_batch, reference.recorded)
    return stepper(reference.model, reference.params, read)


def test_context_and_prediction_are_pytorchs(reference: Reference):
    model, params, recorded = reference
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), read_batch(recorded, 0))
    rows = {ENCODER: jnp.broadcast_to(recorded["initial_rows"], (2, 2, 32))}
    told = jax.jit(model.family.encode_text)(params, batch.ids, rows, batch.sizes)
    [context] = told
    assert_close(context, recorded["context"], FORWARD_TOLERANCE)
    x_t = model.family.process.add_noise(batch.latents, batch.noise, batch.times)
    apply = jax.jit(model.family.denoiser.module.apply)
    prediction = apply({"params": params["unet"]}, x_t, batch.times, *told)
    theirs = np.moveaxis(recorded["prediction"], 1, -1)
    assert_close(prediction, theirs, FORWARD_TOLERANCE)


def test_gradient_to_the_rows_is_autograds(reference: Reference):
    """At every point of PyTorch's way."""
    recorded = reference.recorded
    begin, take_step = steps(reference)
    for index, rows in enumerate([recorded["initial_rows"], *recorded["rows"][:-1]]):
        _, loss, grads = take_step(begin({ENCODER: rows}), index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        assert_close(grads[ENCODER], recorded["grads"][index], GRADIENT_TOLERANCE)
    assert index == 19


def test_training_stays_on_pytorchs_trajectory(reference: Reference):
    recorded, first = reference.recorded, reference.recorded["initial_rows"]
    begin, take_step = steps(reference)
    state = begin({ENCODER: first})
    for index in range(20):
        state, loss, _ = take_step(state, index)
        assert_close(loss, recorded["losses"][index], TRAJECTORY_TOLERANCE)
        ours = np.asarray(state.rows[ENCODER][0]) - first
        assert_close(ours, recorded["rows"][index] - first, TRAJECTORY_TOLERANCE)


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_a_picture_is_that_of_diffusers_pipeline(
    reference: Reference, guidance_scale: float
):
    """By the model's own DDIM; 1 is the pipeline's default, 6 its model card's."""
    theirs = reference.recorded[f"picture.{guidance_scale}"]
    [ours] = draw_picture(reference, guidance_scale)
    assert ours.shape == theirs.shape
    assert np.ptp(theirs) > 50
    # A pixel on the edge between two of 256 levels may fall on either side.
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    other = reference.recorded[f"picture.{7.0 - guidance_scale}"]
    assert np.abs(ours.astype(int) - other).max() > 1


def draw_picture(reference: Reference, guidance_scale: float) -> np.ndarray:
    model, params, recorded = reference
    family, noise = model.family, np.moveaxis(recorded["picture.noise"], 1, -1)
    [encoder] = family.text_encoders
    tokenizer = load_tokenizer(model.tokenizer(encoder), encoder.pieces)
    tokenize = PromptTokenizer(tokenizer, encoder.vocab_size, {"<cat>": 2})
    told = sampling.encode_prompts(
        params,
        {ENCODER: tokenize(["A <cat> on a Mat", ""])},
        {ENCODER: recorded["picture.rows"]},
        family,
        (16, 24),
        last_is_empty=True,
    )
    name = scheduler_config.find_name(model.scheduler)
    sampler = scheduler_config.make_sampler(model.scheduler, name, 5)
    mesh = sharding.make_mesh(jax.devices()[:1])
    latents = sampling.sample_latents(
        params["unet"],
        sampler.steps,
        tuple(each[:1] for each in told),
        tuple(each[-1] for each in told),
        noise,
        guidance_scale,
        stepper=sampler.stepper,
        denoiser=family.denoiser.module,
        mesh=mesh,
    )
    return np.asarray(
        sampling.decode_latents(
            params["vae"],
            latents,
            autoencoder=family.autoencoder.module,
            scale=family.scale,
            mesh=mesh,
        )
    )


def test_every_token_sees_all_others_and_the_padding(reference: Reference):
    """Unlike CLIP's, whose tokens see those before them alone."""
    model, params, recorded = reference
    module = model.family.text_encoders[0].module
    apply = functools.partial(jax.jit(module.apply), {"params": params[ENCODER]})
    ids, rows = recorded["ids"][0][:1], recorded["initial_rows"][None]
    context = apply(ids, rows)
    for place in (1, ids.shape[1] - 1):
        other = ids.copy()
        other[0, place] = 7 if ids[0, place] != 7 else 8
        difference = np.abs(apply(other, rows) - context).max(axis=-1)
        assert (difference > 1e-4).all()
