"""Records what PyTorch computes for a tiny random model of latent diffusion with BERT.

    python tests/record_ldm.py

rewrites tests/reference/ldm.safetensors, to which test_ldm_parity.py holds ours, also
where PyTorch is absent. The weights are not kept: ldm_models draws them again. Needs
torch, diffusers, transformers.
"""

import collections
import tempfile
from pathlib import Path

import diffusers
import ldm_models
import numpy as np
import torch
from record_reference import call_with_rows, draw, one_thread
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor, nn

REFERENCE = Path(__file__).parent / "reference" / "ldm.safetensors"
LEARNED, TOKENS = 2, 12
STEPS, BATCH = 20, 2
LEARNING_RATE = 5e-3
LATENT_SIZE = (8, 12)
NAMES, PROMPT = ("<cat>", "<cat>_1"), "A <cat> on a Mat"
INFERENCE_STEPS, GUIDANCE_SCALES = 5, (1.0, 6.0)


def load(folder: Path) -> diffusers.LDMTextToImagePipeline:
    """Every weight of the files and no other, or an error."""
    pipeline = diffusers.LDMTextToImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    unread = {"to_logits.weight", "to_logits.bias"}
    for name, stem in (("bert", "model"), ("unet", "diffusion_pytorch_model")):
        model = getattr(pipeline, name).eval().requires_grad_(False)
        state = load_file(folder / name / f"{stem}.safetensors")
        assert not state.keys() & unread
        own = {key: value for key, value in model.state_dict().items() if key in unread}
        model.load_state_dict(state | own, strict=True)
    return pipeline


@one_thread()
def record(folder: Path) -> dict[str, np.ndarray]:
    """What PyTorch makes of the model in `folder`."""
    pipeline, rng = load(folder), np.random.default_rng(0)
    recorded = {**record_training(pipeline, rng), **record_pictures(pipeline, rng)}
    return {
        name: np.ascontiguousarray(torch.as_tensor(each).detach().numpy())
        for name, each in recorded.items()
    }


def draw_ids(vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Ids [STEPS, BATCH, TOKENS]: both learned words, one twice, and padding."""
    ids = rng.integers(5, vocab_size, size=(STEPS, BATCH, TOKENS))
    words = vocab_size + np.arange(LEARNED)
    for prompt in ids.reshape(-1, TOKENS):
        end = rng.integers(6, TOKENS)
        prompt[rng.choice(end, LEARNED + 1, replace=False)] = [*words, words[0]]
        prompt[end:] = 0
    return ids


def record_training(
    pipeline: diffusers.LDMTextToImagePipeline, rng: np.random.Generator
) -> dict[str, Tensor]:
    """20 AdamW steps on the rows, and what leads to their loss."""
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    shape = (STEPS, BATCH, 4, *LATENT_SIZE)
    batches = {
        "ids": torch.from_numpy(draw_ids(pipeline.bert.config.vocab_size, rng)),
        "latents": draw(rng, *shape),
        "noise": draw(rng, *shape),
        "timesteps": torch.from_numpy(rng.integers(1000, size=(STEPS, BATCH))),
    }
    initial = 0.1 * draw(rng, LEARNED, ldm_models.WIDTH)
    rows = initial.clone().requires_grad_()
    optimizer = torch.optim.AdamW([rows], lr=LEARNING_RATE, weight_decay=0.0)
    steps: dict[str, list[Tensor]] = collections.defaultdict(list)
    for step in range(STEPS):
        batch = {name: values[step] for name, values in batches.items()}
        context = call_with_rows(pipeline.bert, batch["ids"], rows)[0]
        x_t = scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        prediction = pipeline.unet(x_t, batch["timesteps"], context).sample
        loss = nn.functional.mse_loss(prediction, batch["noise"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps["losses"].append(loss)
        if step == 0:
            first = {"context": context, "prediction": prediction}
        steps["grads"].append(rows.grad)
        steps["rows"].append(rows.detach().clone())
    made = {name: torch.stack(values) for name, values in steps.items()}
    return {**batches, **first, **made, "initial_rows": initial}


def record_pictures(
    pipeline: diffusers.LDMTextToImagePipeline, rng: np.random.Generator
) -> dict[str, Tensor]:
    """A learned word's pictures by diffusers' pipeline, without and with guidance."""
    rows = 0.1 * draw(rng, LEARNED, ldm_models.WIDTH)
    teach(pipeline, NAMES, rows)
    noise = draw(rng, 1, 4, *LATENT_SIZE)
    made = {"picture.noise": noise, "picture.rows": rows}
    for scale in GUIDANCE_SCALES:
        made[f"picture.{scale}"] = picture(pipeline, noise, scale)
    return made


def teach(
    pipeline: diffusers.LDMTextToImagePipeline, names: tuple[str, ...], rows: Tensor
) -> None:
    """A word for a pipeline that diffusers gave no `load_textual_inversion`."""
    pipeline.tokenizer.add_tokens(list(names))
    table = pipeline.bert.get_input_embeddings()
    longer = torch.zeros(table.num_embeddings + len(names), rows.shape[1])
    longer[: table.num_embeddings] = table.weight
    longer[pipeline.tokenizer.convert_tokens_to_ids(list(names))] = rows
    table.weight = nn.Parameter(longer, requires_grad=False)


def picture(
    pipeline: diffusers.LDMTextToImagePipeline, noise: Tensor, guidance_scale: float
) -> Tensor:
    """uint8 [H, W, 3]."""
    # The pipeline takes 8 pixels for a latent; the tiny autoencoder has 2.
    height, width = (8 * side for side in LATENT_SIZE)
    [made] = pipeline(
        [PROMPT.replace(NAMES[0], " ".join(NAMES))],
        num_inference_steps=INFERENCE_STEPS,
        guidance_scale=guidance_scale,
        latents=noise.clone(),
        height=height,
        width=width,
        output_type="np",
    ).images
    return torch.from_numpy(np.round(255 * made).astype(np.uint8))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ldm_models.write(Path(folder))
        recorded = record(Path(folder))
    save_file(recorded, REFERENCE)


if __name__ == "__main__":
    main()
