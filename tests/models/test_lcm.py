"""Models distilled for a guidance scale, and LCM's sampler, are diffusers'."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.config.verify_keys import VerifyKeys
from ti_flax.diffusion import samplers, scheduler_config
from ti_flax.formats import find, registry
from ti_flax.generation import compare, sampling
from ti_flax.models import base_model
from ti_flax.runtime import sharding
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

torch_models = pytest.importorskip("torch_models")

SHAPE = (8, 4, 4)
STEPS, GUIDANCE_SCALE, SEED = 4, 8.0, 7
CONFIG = {
    "_class_name": "LCMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
}
SETTINGS = [
    {},
    {"prediction_type": "v_prediction"},
    {"original_inference_steps": 100, "timestep_scaling": 1.0},
    {"num_train_timesteps": 250, "set_alpha_to_one": False},
]


@pytest.fixture
def own_noise(monkeypatch: pytest.MonkeyPatch):
    """diffusers' scheduler takes the noise of each step from what it is given.

    Gives (noise [N, B, h, w, c]) to that, and skips where there is no PyTorch.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_lcm

    def give(fresh: np.ndarray) -> None:
        left = iter(np.asarray(fresh))

        def draw(shape, **_):
            return torch.from_numpy(np.moveaxis(next(left), -1, 1).copy())

        monkeypatch.setattr(scheduling_lcm, "randn_tensor", draw)

    return give


def predict(xp, x, t):
    """A prediction that depends on latents and timestep, for torch and JAX."""
    return xp.tanh(1.3 * x) + 0.2 * xp.sin(x * t / 300)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 50])
def test_the_sampler_is_diffusers(settings: dict, num_steps: int, own_noise) -> None:
    import diffusers
    import torch

    seeds = np.array([SEED, SEED + 1], np.uint32)
    noise = np.asarray(sampling.draw_noise(seeds, SHAPE))
    fresh = sampling.draw_noises(seeds, SHAPE, num_steps)
    own_noise(fresh)
    scheduler = diffusers.LCMScheduler.from_config(CONFIG | settings)
    scheduler.set_timesteps(num_steps)
    x = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = predict(torch, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x).prev_sample
    sampler = scheduler_config.make_sampler(CONFIG | settings, "lcm", num_steps)
    np.testing.assert_array_equal(sampler.steps.timesteps, scheduler.timesteps)
    ours = samplers.sample(
        sampler.stepper,
        sampler.steps.renewed(lambda count: fresh),
        lambda x, t: predict(jnp, x, t),
        jnp.asarray(noise),
    )
    theirs = np.moveaxis(x.numpy(), 1, -1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_more_steps_than_it_was_distilled_for_are_told() -> None:
    with pytest.raises(UserError, match="the 50 steps of its distillation at most, fo"):
        scheduler_config.make_sampler(CONFIG, "lcm", 51)


def test_the_noise_of_a_step_is_of_its_seed_alone() -> None:
    """Neither of the other pictures nor of the first noise, and another each step."""
    pair = sampling.draw_noises(np.array([SEED, 3], np.uint32), SHAPE, 3)
    alone = sampling.draw_noises(np.array([SEED], np.uint32), SHAPE, 5)
    np.testing.assert_array_equal(pair[:, 0], alone[:3, 0])
    first = sampling.draw_noise(np.array([SEED], np.uint32), SHAPE)
    drawn = np.stack([first[0], *alone[:, 0], *pair[:, 1]]).reshape(9, -1)
    close = np.abs(np.corrcoef(drawn) - np.eye(9)).max()
    assert close < 0.5


def test_a_picture_is_that_of_diffusers_pipeline(own_noise, tmp_path) -> None:
    """The UNet is told the scale, and asked once a step."""
    import diffusers
    import torch

    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        models = torch_models.make_models("sd1", rng, time_cond_proj_dim=16)
        torch_models.save_model("sd1", tmp_path, *models)
        text_encoder, unet, vae = models
        scheduler = diffusers.LCMScheduler.from_config(CONFIG)
        scheduler.save_pretrained(tmp_path / "scheduler")
        pipeline = diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    told = rng.standard_normal((2, 8, torch_models.WIDTH)).astype(np.float32)
    seeds = np.array([SEED], np.uint32)
    noise = np.asarray(sampling.draw_noise(seeds, SHAPE))

    def theirs(guidance_scale: float) -> np.ndarray:
        own_noise(sampling.draw_noises(seeds, SHAPE, STEPS))
        [made] = pipeline(
            prompt_embeds=torch.from_numpy(told[:1]),
            latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
            height=2 * SHAPE[0],
            width=2 * SHAPE[1],
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            output_type="np",
        ).images
        return np.round(255 * made)

    model = base_model.open_model(str(tmp_path))
    assert scheduler_config.find_name(model.scheduler) == "lcm"
    with pytest.raises(UserError, match=r"distilled .* train on the base model"):
        model.family.check_trains()
    rows = {"text_encoder": np.ones((1, torch_models.WIDTH), np.float32)}
    registry.write(tmp_path / "word", "diffusers", Embedding("<toy>", rows))
    keys = VerifyKeys(source=str(tmp_path / "word"), model=str(tmp_path), prompt="a")
    with pytest.raises(UserError, match="LCM's scheduler draws noise in each step"):
        compare.pictures(
            pipeline, model, registry.read(find.find_file(keys.source)), keys
        )
    recipe = sampling.SamplingRecipe(
        family=model.family,
        sampler=scheduler_config.make_sampler(model.scheduler, "lcm", STEPS),
        guidance_scale=GUIDANCE_SCALE,
        latent_shape=SHAPE,
        mesh=sharding.make_mesh(jax.devices()[:1]),
    )
    wanted = sampling.Wanted(np.array([0]), seeds, (told,))
    params = {name: model.load(name) for name in ("unet", "vae")}
    with jax.default_matmul_precision("highest"):
        [[ours]] = sampling.make_images(params, wanted, recipe, 1)
    # A pixel on the edge between two of 256 levels may fall on either side.
    assert np.abs(theirs(GUIDANCE_SCALE) - ours).max() <= 1
    assert np.ptp(ours) > 50
    assert np.abs(theirs(1.5) - ours).max() > 2
