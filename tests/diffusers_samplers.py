"""diffusers' schedulers on latents of a few numbers, and the record of what they gave.

    python tests/diffusers_samplers.py

rewrites reference/samplers.safetensors, which stands for diffusers where torch is
absent. A key is Case.name; `.latents` are [steps of STEPS, numbers], `.timesteps` those
of all STEPS one after another, `.lengths` how many each of STEPS has.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RECORD = Path(__file__).parent / "reference" / "samplers.safetensors"
STEPS = (1, 2, 3, 4, 7, 13, 16, 30, 48, 60)
NOISE = np.random.default_rng(0).normal(size=8)
SD = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CLASSES = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
}
# On 1000 timesteps; None is every sampler.
_SETTINGS: list[tuple[tuple[str, ...] | None, dict[str, Any]]] = [
    (None, {"prediction_type": "v_prediction"}),
    (None, {"steps_offset": 0}),
    (("ddim", "pndm"), {"set_alpha_to_one": True}),
    (("dpmpp_2m", "euler"), {"use_karras_sigmas": True}),
    (("dpmpp_2m", "euler"), {"final_sigmas_type": "sigma_min"}),
    (
        ("ddim", "dpmpp_2m", "euler"),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
]


class Case(NamedTuple):
    """A sampler and the scheduler_config.json that it is given."""

    sampler: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        settings = (f"{key}={value}" for key, value in self.config.items())
        return " ".join([self.sampler, *sorted(set(settings) - _USUAL)])


_USUAL = {f"{key}={value}" for key, value in SD.items()}


def cases() -> list[Case]:
    """Every sampler on every spacing, training length and setting."""
    changes: list[tuple[tuple[str, ...] | None, dict[str, Any]]] = [
        (None, {"num_train_timesteps": total}) for total in (100, 250, 999, 1000, 4000)
    ]
    changes += [(who, {"num_train_timesteps": 1000} | add) for who, add in _SETTINGS]
    return [
        Case(sampler, SD | {"timestep_spacing": spacing} | change)
        for (who, change), spacing in itertools.product(
            changes, ("linspace", "leading", "trailing")
        )
        for sampler in who or CLASSES
    ]


def predict(xp: Any, x: Any, t: Any) -> Any:
    """A prediction that depends on latents and timestep, for numpy, torch and JAX."""
    return xp.tanh(1.3 * x) + 0.2 * xp.sin(x * t / 300)


def diffusers_sample(case: Case, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and latents of StableDiffusionPipeline's loop, in float64."""
    import diffusers
    import torch

    scheduler = getattr(diffusers, CLASSES[case.sampler]).from_config(case.config)
    scheduler.set_timesteps(num_steps)
    x = torch.tensor(NOISE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = predict(torch, scheduler.scale_model_input(x, t), t)
        x = scheduler.step(prediction, t, x).prev_sample
    return scheduler.timesteps.numpy().astype(np.float64), x.numpy()


def record() -> dict[str, np.ndarray]:
    arrays = {}
    for case in cases():
        timesteps, latents = zip(
            *(diffusers_sample(case, num_steps) for num_steps in STEPS), strict=True
        )
        arrays[f"{case.name}.lengths"] = np.array([len(t) for t in timesteps], np.int32)
        arrays[f"{case.name}.timesteps"] = np.concatenate(timesteps).astype(np.float32)
        arrays[f"{case.name}.latents"] = np.stack(latents).astype(np.float32)
    return arrays


if __name__ == "__main__":
    import diffusers
    from safetensors.numpy import save_file

    save_file(record(), RECORD, {"diffusers": diffusers.__version__})
