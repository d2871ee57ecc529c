"""Inpainting models of Stable Diffusion 1.x and 2.x are PyTorch's, told to paint all.

Those of SDXL are in test_sdxl_parity.py. Tolerances are those of parity.py.
"""

import warnings
from typing import Any, NamedTuple

import jax
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

from ti_flax.diffusion import scheduler_config
from ti_flax.generation import sampling
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step.bank import Batch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")
record_reference = pytest.importorskip("record_reference")

NAME = "text_encoder"
STEPS, GUIDANCE_SCALE = 4, 5.0


class Reference(NamedTuple):
    """A model, its params, and what PyTorch computes with it."""

    model: base_model.BaseModel
    params: dict[str, Params]
    recorded: Arrays
    pipeline: Any


@pytest.fixture(autouse=True)
def float32_products():
    with jax.default_matmul_precision("highest"):
        yield


# That of 2.x has odd sizes, three levels and v.
@pytest.fixture(
    scope="module", params=["sd2", pytest.param("sd1", marks=pytest.mark.slow)]
)
def reference(request: pytest.FixtureRequest, tmp_path_factory) -> Reference:
    kind, folder = request.param, tmp_path_factory.mktemp("inpainting")
    rng = np.random.default_rng(3)
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        models = torch_models.make_models(kind, rng, in_channels=9)
        torch_models.save_model(kind, folder, *models)
        text_encoder, unet, vae = models
        size = record_reference.LATENT_SIZE[kind]
        canvas = make_canvas(vae, size)
        recorded = record_reference.record_training(
            kind, text_encoder, unet, rng, canvas
        )
        pipeline = diffusers.StableDiffusionInpaintPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=None,
            unet=unet,
            scheduler=torch_models.SCHEDULERS[kind],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    model = base_model.open_model(str(folder))
    arrays = {name: each.detach().numpy() for name, each in recorded.items()}
    return Reference(
        model,
        {name: model.load(name) for name in model.family.parts},
        {**arrays, "canvas": canvas.numpy()},
        pipeline,
    )


def make_canvas(vae, size: tuple[int, int]):
    """The mask and the masked picture of diffusers' pipeline, a mask of ones."""
    with torch.no_grad():
        picture = torch.zeros(1, 3, *(2 * side for side in size))
        means = vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor
    return torch.cat([torch.ones_like(means[:, :1]), means], dim=1)


def test_the_family_is_its_own(reference: Reference) -> None:
    family = reference.model.family
    assert family.pipeline == "StableDiffusionInpaintPipeline"
    assert (family.latent_channels, family.moment_channels) == (4, 12)


def test_the_grey_picture_is_seen_as_by_diffusers(reference: Reference) -> None:
    theirs = np.moveaxis(reference.recorded["canvas"], 1, -1)[0]
    size = tuple(2 * side for side in theirs.shape[:2])
    ours = reference.model.family.canvas(reference.params["vae"], size=size)
    assert_close(ours, theirs, FORWARD_TOLERANCE)
    # The borders of a constant picture are not constant: a number would not do.
    assert np.ptp(theirs[..., 1:], axis=(0, 1)).max() > 1e-3


def steps(reference: Reference):
    recorded = reference.recorded

    def read_batch(index: int) -> Batch:
        ids = {NAME: recorded["ids"][index]}
        return batch_of(recorded, index, ids, np.zeros((2, 6)))

    return stepper(reference.model, reference.params, read_batch)


def test_loss_and_gradient_to_the_rows_are_autograds(reference: Reference) -> None:
    recorded = reference.recorded
    begin, take = steps(reference)
    for index, rows in enumerate([recorded["initial_rows"], *recorded["rows"][:-1]]):
        _, loss, grads = take(begin({NAME: rows}), index)
        assert_close(loss, recorded["losses"][index], GRADIENT_TOLERANCE)
        assert_close(grads[NAME], recorded["grads"][index], GRADIENT_TOLERANCE)


def test_training_stays_on_pytorchs_trajectory(reference: Reference) -> None:
    recorded = reference.recorded
    begin, take = steps(reference)
    first = recorded["initial_rows"]
    state = begin({NAME: first})
    for index, rows in enumerate(recorded["rows"]):
        state, loss, _ = take(state, index)
        assert_close(loss, recorded["losses"][index], TRAJECTORY_TOLERANCE)
        ours = np.asarray(state.rows[NAME][0]) - first
        assert_close(ours, rows - first, TRAJECTORY_TOLERANCE)
    assert index == 19


def test_a_picture_is_that_of_diffusers_pipeline(reference: Reference) -> None:
    """By the model's own scheduler, of a context that both are given."""
    model, params, recorded, pipeline = reference
    family, canvas = model.family, torch.from_numpy(recorded["canvas"])
    size = tuple(canvas.shape[2:])
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((1, *size, 4)).astype(np.float32)
    told, negative = rng.standard_normal((2, 1, 8, torch_models.WIDTH))
    pixels = tuple(2 * side for side in size)
    pipeline.set_progress_bar_config(disable=True)
    [theirs] = pipeline(
        prompt_embeds=torch_models.to_tensor(told),
        negative_prompt_embeds=torch_models.to_tensor(negative),
        image=torch.zeros(1, 3, *pixels),
        mask_image=torch.ones(1, 1, *pixels),
        masked_image_latents=canvas[:, 1:],
        latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
        height=pixels[0],
        width=pixels[1],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="np",
    ).images
    name = scheduler_config.find_name(model.scheduler)
    sampler = scheduler_config.make_sampler(model.scheduler, name, STEPS)
    mesh = sharding.make_mesh(jax.devices()[:1])
    latents = sampling.sample_latents(
        params["unet"],
        sampler.steps,
        (np.float32(told),),
        (np.float32(negative[0]),),
        noise,
        GUIDANCE_SCALE,
        family.canvas(params["vae"], size=pixels),
        stepper=sampler.stepper,
        denoiser=family.denoiser.module,
        mesh=mesh,
    )
    [ours] = sampling.decode_latents(
        params["vae"],
        latents,
        autoencoder=family.autoencoder.module,
        scale=family.scale,
        mesh=mesh,
    )
    assert np.ptp(theirs) > 0.2
    assert np.abs(np.round(255 * theirs) - np.asarray(ours, np.float32)).max() <= 1
