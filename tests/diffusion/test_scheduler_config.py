"""Timesteps and coefficients against diffusers': every sampler, spacing and length.

What differs on purpose is in `compare`, and nothing else does.
"""

import functools

import diffusers_samplers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_samplers import STEPS, Case
from safetensors.numpy import load_file

from ti_flax.diffusion import samplers, scheduler_config

CASES = diffusers_samplers.cases()


@pytest.fixture(scope="module")
def recorded():
    return load_file(diffusers_samplers.RECORD)


@functools.cache
def jitted_sample(stepper):
    predict = functools.partial(diffusers_samplers.predict, jnp)
    return jax.jit(lambda steps, noise: samplers.sample(stepper, steps, predict, noise))


def our_sample(case: Case, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    stepper, steps = scheduler_config.make_sampler(case.config, case.sampler, num_steps)
    noise = np.float32(diffusers_samplers.NOISE)
    latents = jitted_sample(stepper)(steps, noise.reshape(2, 2, 2, 1))
    return np.asarray(steps.timesteps), np.asarray(latents).ravel()


def compare(case: Case, num_steps: int, timesteps: np.ndarray, latents: np.ndarray):
    our_timesteps, ours = our_sample(case, num_steps)
    if len(timesteps) == len(our_timesteps) + 1:
        # The end of diffusers' range is off by a rounding error: it makes a step more,
        # from timestep -1, which is the last of the array.
        assert case.config["timestep_spacing"] == "trailing"
        assert case.config["num_train_timesteps"] == 999
        np.testing.assert_array_equal(our_timesteps, timesteps[:-1])
        assert timesteps[-1] == -1
        return
    if case.config.get("use_karras_sigmas"):
        # Interpolated in sigmas that are float32 there. DPM-Solver's are then rounded,
        # which near a half can go the other way; the sigmas are the same.
        apart = np.abs(our_timesteps - timesteps)
        assert apart.max() < 1e-2 or (set(apart) == {0, 1} and np.sum(apart) == 1)
    else:
        np.testing.assert_array_equal(our_timesteps, timesteps)
    # diffusers' alphas_cumprod are a float32 product of up to 4000 factors.
    assert np.linalg.norm(ours - latents) < 3e-3 * np.linalg.norm(latents)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_timesteps_and_latents_are_those_recorded_from_diffusers(case, recorded):
    ends = np.cumsum(recorded[f"{case.name}.lengths"])
    timesteps = np.split(recorded[f"{case.name}.timesteps"], ends[:-1])
    latents = recorded[f"{case.name}.latents"]
    for found in zip(STEPS, timesteps, latents, strict=True):
        compare(case, *found)


# What diffusers' use of torch and numpy deprecates is not ours to mend.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.config["num_train_timesteps"] == 1000],
    ids=lambda case: case.name,
)
def test_1_to_60_steps_are_those_of_diffusers(case):
    pytest.importorskip("diffusers")
    for num_steps in range(1, 61):
        if num_steps not in STEPS:
            compare(
                case, num_steps, *diffusers_samplers.diffusers_sample(case, num_steps)
            )
