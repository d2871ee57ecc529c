"""Records what PyTorch computes for tiny random SDXL models and relatives.

    python tests/record_sdxl.py

rewrites tests/reference/sdxl/, to which test_sdxl_parity.py holds ours, also where
PyTorch is absent. A model's weights are not kept: sdxl_models draws them again. Needs
torch, diffusers, transformers.
"""

import collections
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import sdxl_models
import torch
import transformers
from record_reference import call_with_rows, draw, one_thread
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor, nn

REFERENCE = Path(__file__).parent / "reference" / "sdxl"
LEARNED, TOKENS = 2, 12
STEPS, BATCH = 20, 2
LEARNING_RATE = 5e-3
LATENT_SIZE = (8, 12)
WORD, PROMPT, NEGATIVE = "<cat>", "a <cat> on a mat", "blur"
INFERENCE_STEPS, GUIDANCE_SCALE = 5, 5.0

Rows = dict[str, Tensor]


class Sdxl(NamedTuple):
    """The networks of a folder that a step runs, and the scheduler that adds its noise.

    `canvas` is what the UNet sees beside x_t, of no channels where it sees that alone.
    """

    text_encoder: transformers.CLIPTextModel
    text_encoder_2: transformers.CLIPTextModelWithProjection
    unet: diffusers.UNet2DConditionModel
    canvas: Tensor
    scheduler: diffusers.SchedulerMixin


def load(folder: Path) -> Sdxl:
    """Every weight of the files and no other, or an error."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    models = Sdxl(
        transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        transformers.CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2"
        ),
        unet,
        canvas(diffusers.AutoencoderKL.from_pretrained(folder / "vae"), unet),
        training_scheduler(folder / "scheduler"),
    )
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    models.unet.load_state_dict(load_file(file), strict=True)
    for model in models[:3]:
        model.eval().requires_grad_(False)
    return models


def canvas(
    vae: diffusers.AutoencoderKL, unet: diffusers.UNet2DConditionModel
) -> Tensor:
    """What an inpainting UNet sees beside x_t: a mask of ones, a grey picture."""
    if unet.config.in_channels == 4:
        return torch.zeros(1, 0, *LATENT_SIZE)
    with torch.no_grad():
        means = vae.encode(grey_picture()).latent_dist.mode()
    means = means * vae.config.scaling_factor
    return torch.cat([torch.ones_like(means[:, :1]), means], dim=1)


def training_scheduler(folder: Path) -> diffusers.SchedulerMixin:
    """The one of a model of EDM; of others DDPM's, on SDXL's betas."""
    config = json.loads((folder / "scheduler_config.json").read_text())
    if config["_class_name"].startswith("EDM"):
        return diffusers.EDMDPMSolverMultistepScheduler.from_config(config)
    return diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )


def diffuse(
    scheduler: diffusers.SchedulerMixin, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """What the UNet is given and told, and the loss of what it makes of it.

    Of EDM as diffusers' train_dreambooth_lora_sdxl.py has it; times count from the
    least noise, as in the other processes.
    """
    z, noise, times = batch["latents"], batch["noise"], batch["timesteps"]
    if isinstance(scheduler, diffusers.DDPMScheduler):
        x_t = scheduler.add_noise(z, noise, times)
        return x_t, times, lambda made: nn.functional.mse_loss(made, noise)
    sigmas = scheduler.sigmas[:-1].flip(0)[times][:, None, None, None]
    x = z + sigmas * noise

    def loss(made: Tensor) -> Tensor:
        denoised = scheduler.precondition_outputs(x, made, sigmas)
        return nn.functional.mse_loss(denoised, z)

    told = scheduler.precondition_noise(sigmas.flatten())
    return scheduler.precondition_inputs(x, sigmas), told, loss


def grey_picture() -> Tensor:
    """In [-1, 1]."""
    return torch.zeros(1, 3, *(2 * side for side in LATENT_SIZE))


@one_thread()
def record(kind: str, folder: Path) -> dict[str, np.ndarray]:
    """What PyTorch makes of the model of this kind in `folder`."""
    models = load(folder)
    rng = np.random.default_rng(sdxl_models.KINDS.index(kind))
    recorded = {**record_training(models, rng), **record_pictures(folder, rng)}
    if models.canvas.shape[1]:
        recorded["canvas"] = models.canvas
    return {
        name: np.ascontiguousarray(torch.as_tensor(each).detach().numpy())
        for name, each in recorded.items()
    }


def draw_ids(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Ids [STEPS, BATCH, TOKENS] of each encoder; prompts differ in length.

    Every prompt has all learned words before its end, one of them twice.
    """
    first = rng.integers(1, sdxl_models.EOS - 1, size=(STEPS, BATCH, TOKENS))
    second = first.copy()
    words = sdxl_models.EOS + 1 + np.arange(LEARNED)
    for one, two in zip(
        first.reshape(-1, TOKENS), second.reshape(-1, TOKENS), strict=True
    ):
        end = rng.integers(6, TOKENS)
        places = rng.choice(end, LEARNED + 1, replace=False)
        for ids, pad in ((one, sdxl_models.EOS), (two, 0)):
            ids[places] = [*words, words[0]]
            ids[end] = sdxl_models.EOS
            ids[end + 1 :] = pad
    return {"text_encoder": first, "text_encoder_2": second}


def encode(models: Sdxl, ids: Rows, rows: Rows) -> tuple[Tensor, Tensor]:
    """Context and pooled text, with `rows` appended to the encoders' tables."""
    outputs = [
        call_with_rows(
            getattr(models, name), ids[name], rows[name], output_hidden_states=True
        )
        for name in ("text_encoder", "text_encoder_2")
    ]
    hidden = [output.hidden_states[-2] for output in outputs]
    return torch.cat(hidden, dim=-1), outputs[-1].text_embeds


def record_training(models: Sdxl, rng: np.random.Generator) -> dict[str, Tensor]:
    """20 AdamW steps on the rows of both encoders, and what leads to their loss."""
    shape = (STEPS, BATCH, 4, *LATENT_SIZE)
    batches = {
        **{f"ids.{name}": torch.from_numpy(i) for name, i in draw_ids(rng).items()},
        "sizes": torch.from_numpy(rng.integers(1500, size=(STEPS, BATCH, 6))),
        "latents": draw(rng, *shape),
        "noise": draw(rng, *shape),
        "timesteps": torch.from_numpy(rng.integers(1000, size=(STEPS, BATCH))),
    }
    widths = {"text_encoder": 32, "text_encoder_2": 48}
    initial = {name: 0.02 * draw(rng, LEARNED, width) for name, width in widths.items()}
    rows = {name: each.clone().requires_grad_() for name, each in initial.items()}
    optimizer = torch.optim.AdamW(rows.values(), lr=LEARNING_RATE, weight_decay=0.0)
    steps: dict[str, list[Tensor]] = collections.defaultdict(list)
    for step in range(STEPS):
        batch = {name: values[step] for name, values in batches.items()}
        ids = {name: batch[f"ids.{name}"] for name in widths}
        context, pooled = encode(models, ids, rows)
        x_t, told, loss_of = diffuse(models.scheduler, batch)
        x_t = torch.cat([x_t, models.canvas.expand(BATCH, -1, -1, -1)], dim=1)
        added = {"text_embeds": pooled, "time_ids": batch["sizes"]}
        prediction = models.unet(x_t, told, context, added_cond_kwargs=added).sample
        loss = loss_of(prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps["losses"].append(loss)
        if step == 0:
            first = {"context": context, "pooled": pooled, "prediction": prediction}
        for name, each in rows.items():
            steps[f"grads.{name}"].append(each.grad)
            steps[f"rows.{name}"].append(each.detach().clone())
    return {
        **batches,
        **first,
        **{name: torch.stack(values) for name, values in steps.items()},
        **{f"initial_rows.{name}": each for name, each in initial.items()},
    }


def record_pictures(folder: Path, rng: np.random.Generator) -> dict[str, Tensor]:
    """A learned word's picture by diffusers' pipeline, also with a negative prompt."""
    index = json.loads((folder / "model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    rows = {"picture.text_encoder": 32, "picture.text_encoder_2": 48}
    rows = {name: 0.02 * draw(rng, LEARNED, width) for name, width in rows.items()}
    teach(pipeline, *rows.values())
    noise = draw(rng, 1, 4, *LATENT_SIZE)
    made = {"picture.noise": noise, **rows}
    for name, negative in (("alone", None), ("negative", NEGATIVE)):
        made[f"picture.{name}"] = picture(pipeline, noise, negative)
    return made


def teach(
    pipeline: diffusers.StableDiffusionXLPipeline, first: Tensor, second: Tensor
) -> None:
    """Loads the rows of a word by the calls that diffusers documents."""
    pipeline.load_textual_inversion(
        first,
        token=WORD,
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
    )
    pipeline.load_textual_inversion(
        second,
        token=WORD,
        tokenizer=pipeline.tokenizer_2,
        text_encoder=pipeline.text_encoder_2,
    )


def picture(
    pipeline: diffusers.StableDiffusionXLPipeline, noise: Tensor, negative: str | None
) -> Tensor:
    """uint8 [H, W, 3]."""
    height, width = (2 * side for side in LATENT_SIZE)
    seen = canvas(pipeline.vae, pipeline.unet)
    inpainting: dict[str, Any] = {}
    if seen.shape[1]:
        inpainting = {
            "image": grey_picture(),
            "mask_image": torch.ones(1, 1, height, width),
            # Else a sample of the posterior.
            "masked_image_latents": seen[:, 1:],
            "strength": 1.0,
        }
    [made] = pipeline(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=INFERENCE_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        latents=noise.clone(),
        height=height,
        width=width,
        output_type="np",
        **inpainting,
    ).images
    return torch.from_numpy(np.round(255 * made).astype(np.uint8))


def main() -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for kind in sdxl_models.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            sdxl_models.write(kind, Path(folder))
            recorded = record(kind, Path(folder))
        save_file(recorded, REFERENCE / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
