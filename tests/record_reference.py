"""Records what PyTorch computes for tiny random Stable Diffusion models.

    python tests/record_reference.py

rewrites tests/reference/. The Flax models are held to these files by test_parity.py, so
that parity is checked also where torch is absent. Needs torch, diffusers, transformers.
Two runs write the same bytes; the versions they were made with stand in the metadata.

A folder of one kind holds
    model/                      weights and configs as diffusers keeps them
    text_encoder.safetensors    inputs, output and the output of every block, by the
    unet.safetensors            block's PyTorch name; arrays are NCHW as in PyTorch
    vae.safetensors
    training.safetensors        20 AdamW steps on K learned rows, and their randomness
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch_models
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from torch import Tensor, nn

REFERENCE = Path(__file__).parent / "reference"

LEARNED, TOKENS = 2, 12
STEPS, BATCH = 20, 2
LEARNING_RATE = 5e-3
# Not square, so that swapped axes show; odd for sd2, so that an upsampled map is larger
# than the skip connection that it meets.
LATENT_SIZE = {"sd1": (6, 4), "sd2": (7, 5)}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The order of sums, hence every bit, depends on the number of threads.

    One is also the fastest for models as small as these.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def record(kind: str, folder: Path) -> None:
    """Writes the model and the reference outputs of one kind into `folder`."""
    rng = np.random.default_rng(torch_models.KINDS.index(kind))
    text_encoder, unet, vae = torch_models.make_models(kind, rng)
    folder.mkdir(parents=True, exist_ok=True)
    torch_models.save_model(kind, folder / "model", text_encoder, unet, vae)
    recordings = {
        "text_encoder": record_text_encoder(text_encoder, rng),
        "unet": record_unet(kind, unet, rng),
        "vae": record_vae(kind, vae, rng),
        "training": record_training(kind, text_encoder, unet, rng),
    }
    # One entry: safetensors writes several in the order of a random hash.
    versions = ", ".join(
        f"{module.__name__} {module.__version__}"
        for module in (torch, diffusers, transformers)
    )
    for name, tensors in recordings.items():
        # safetensors refuses views, of which several outputs are.
        own = {
            key: value.detach().contiguous().clone() for key, value in tensors.items()
        }
        save_file(own, folder / f"{name}.safetensors", metadata={"versions": versions})


def record_text_encoder(
    model: transformers.CLIPTextModel, rng: np.random.Generator
) -> dict[str, Tensor]:
    ids = torch.from_numpy(rng.integers(torch_models.VOCAB_SIZE, size=(BATCH, TOKENS)))
    blocks, output = run_with_blocks(model, lambda: model(ids)[0])
    return {"ids": ids, "output": output, **blocks}


def record_unet(
    kind: str, model: diffusers.UNet2DConditionModel, rng: np.random.Generator
) -> dict[str, Tensor]:
    sample = draw(rng, BATCH, 4, *LATENT_SIZE[kind])
    timesteps = torch.tensor([0, 999])
    context = draw(rng, BATCH, TOKENS, torch_models.WIDTH)
    blocks, output = run_with_blocks(
        model, lambda: model(sample, timesteps, context).sample
    )
    inputs = {"sample": sample, "timesteps": timesteps, "context": context}
    return {**inputs, "output": output, **blocks}


def record_vae(
    kind: str, model: diffusers.AutoencoderKL, rng: np.random.Generator
) -> dict[str, Tensor]:
    height, width = LATENT_SIZE[kind]
    pixels = draw(rng, 1, 3, 2 * height, 2 * width)
    latents = draw(rng, 1, 4, height, width)
    encoder, moments = run_with_blocks(
        model, lambda: model.encode(pixels).latent_dist.parameters
    )
    decoder, decoded = run_with_blocks(model, lambda: model.decode(latents).sample)
    inputs = {"pixels": pixels, "latents": latents}
    outputs = {"moments": moments, "decoded": decoded}
    return {**inputs, **outputs, **encoder, **decoder, **record_posterior(rng)}


def record_posterior(rng: np.random.Generator) -> dict[str, Tensor]:
    """A sample of the posterior; some log-variances are beyond the clips."""
    moments = 40 * draw(rng, 1, 8, 4, 4)
    noise = draw(rng, 1, 4, 4, 4)
    posterior = DiagonalGaussianDistribution(moments)
    return {
        "posterior.moments": moments,
        "posterior.noise": noise,
        "posterior.sample": posterior.mean + posterior.std * noise,
    }


def run_with_blocks(
    model: nn.Module, call: Callable[[], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Calls; returns what every block inside `model` gave (`block.<name>`) as well.

    A block is a module made of others, or a norm.
    """
    blocks: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        # transformers before 5.6 wraps the model in one more module of this name.
        blocks[f"block.{name.removeprefix('text_model.')}"] = first.clone()

    norms = nn.GroupNorm | nn.LayerNorm
    handles = [
        module.register_forward_hook(functools.partial(keep, name))
        for name, module in model.named_modules()
        if name not in ("", "text_model")
        if isinstance(module, norms) or list(module.children())
    ]
    with torch.no_grad():
        output = call()
    for handle in handles:
        handle.remove()
    return blocks, output


def record_training(
    kind: str,
    text_encoder: transformers.CLIPTextModel,
    unet: diffusers.UNet2DConditionModel,
    rng: np.random.Generator,
    canvas: Tensor | None = None,
) -> dict[str, Tensor]:
    """Textual Inversion by torch autograd and torch's AdamW on the rows alone.

    `canvas` is what an inpainting UNet sees beside x_t.
    """
    scheduler = diffusers.DDPMScheduler.from_config(
        torch_models.SCHEDULERS[kind].config
    )
    size = (STEPS, BATCH, 4, *LATENT_SIZE[kind])
    batches = {
        "ids": torch.from_numpy(draw_prompts(rng)),
        "latents": draw(rng, *size),
        "noise": draw(rng, *size),
        "timesteps": torch.from_numpy(rng.integers(1000, size=(STEPS, BATCH))),
    }
    initial_rows = torch_models.EMBEDDING_SCALE * draw(rng, LEARNED, torch_models.WIDTH)
    rows = initial_rows.clone().requires_grad_()
    optimizer = torch.optim.AdamW([rows], lr=LEARNING_RATE, weight_decay=0.0)
    steps: dict[str, list[Tensor]] = collections.defaultdict(list)
    for step in range(STEPS):
        batch = {name: values[step] for name, values in batches.items()}
        x_t, target = diffuse(scheduler, batch)
        if canvas is not None:
            x_t = torch.cat([x_t, canvas.expand(BATCH, -1, -1, -1)], dim=1)
        context = encode_prompts(text_encoder, batch["ids"], rows)
        prediction = unet(x_t, batch["timesteps"], context).sample
        loss = nn.functional.mse_loss(prediction, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps["x_t"].append(x_t)
        steps["target"].append(target)
        steps["losses"].append(loss)
        steps["grads"].append(rows.grad)
        steps["rows"].append(rows.detach().clone())
    return {
        **batches,
        **{name: torch.stack(values) for name, values in steps.items()},
        "initial_rows": initial_rows,
        "alphas_cumprod": scheduler.alphas_cumprod,
    }


def draw_prompts(rng: np.random.Generator) -> np.ndarray:
    """Ids [STEPS, BATCH, TOKENS]; each prompt has every learned word, one twice."""
    ids = rng.integers(torch_models.VOCAB_SIZE, size=(STEPS, BATCH, TOKENS))
    learned = [torch_models.VOCAB_SIZE + k for k in range(LEARNED)]
    for prompt in ids.reshape(-1, TOKENS):
        places = rng.choice(TOKENS, LEARNED + 1, replace=False)
        prompt[places] = [*learned, learned[0]]
    return ids


def diffuse(
    scheduler: diffusers.DDPMScheduler, batch: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Noisy latents and what the UNet should make of them."""
    arguments = batch["latents"], batch["noise"], batch["timesteps"]
    target = {
        "epsilon": lambda: batch["noise"],
        "v_prediction": lambda: scheduler.get_velocity(*arguments),
    }[scheduler.config.prediction_type]()
    return scheduler.add_noise(*arguments), target


def encode_prompts(
    model: transformers.CLIPTextModel, ids: Tensor, rows: Tensor
) -> Tensor:
    """The text encoder's output with `rows` appended to its table of embeddings."""
    return call_with_rows(model, ids, rows)[0]


def call_with_rows(model: nn.Module, ids: Tensor, rows: Tensor, **settings: Any) -> Any:
    """All that a text encoder gives with `rows` appended to its table."""
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    longer = {f"{name}.weight": torch.cat([table.weight, rows])}
    return torch.func.functional_call(model, longer, ids, settings)


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch_models.to_tensor(rng.standard_normal(shape))


if __name__ == "__main__":
    for each in torch_models.KINDS:
        record(each, REFERENCE / each)
