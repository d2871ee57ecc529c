"""Trains the quickstart model's text encoder and UNet together, on stored latents."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int32
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti_flax.quickstart.base_model import noun_rows, workers
from ti_flax.quickstart.base_model.clock import Average, Training, append_log
from ti_flax.quickstart.base_model.latents import Moments
from ti_flax.quickstart.critters import drawing, world

_BATCH = 8  # in each process
_PEAK_RATE = 1e-3
_PEAK_RATE_FURTHER = 3e-4  # what is learned already must not be shaken
_EMA_DECAY = 0.999
_LOG_STEPS = 50
_SAVE_STEPS = 500
_SHOW_STEPS = 1000
_WIDTH = 128


class Said(NamedTuple):
    """What is said of each picture: K captions, and the parts of its name."""

    ids: Int32[np.ndarray, "N K L"]
    parts: Int32[np.ndarray, "N parts"]


class TextToLatents(torch.nn.Module):
    """The two networks that are trained together and the names, as one module."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_WIDTH,
                intermediate_size=4 * _WIDTH,
                projection_dim=_WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                hidden_act="quick_gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 96, 96),
            down_block_types=(
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
            ),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=_WIDTH,
            attention_head_dim=3,  # the number of heads, despite its name
            norm_num_groups=4,
            use_linear_projection=True,
        )
        self.names = noun_rows.Names(tokenizer, _WIDTH)
        # The fused attention's gradient is several times slower on a CPU.
        self.text_encoder.set_attn_implementation("eager")
        self.unet.set_attn_processor(AttnProcessor())

    def forward(
        self,
        noisy: Float[Tensor, "B c h w"],
        timesteps: Tensor,
        ids: Tensor,
        parts: Tensor,
        said: Tensor,
    ) -> Float[Tensor, "B c h w"]:
        def name(embedding, inputs, embedded):
            return self.names(embedded, inputs[0], embedding.weight, parts, said)

        hook = self.text_encoder.get_input_embeddings().register_forward_hook(name)
        words = self.text_encoder(ids).last_hidden_state
        hook.remove()
        return self.unet(noisy, timesteps, words).sample


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise, predicting v (Salimans and Ho 2022, equation 11).

    A flat background is decided at the noisiest steps, where v leaves much to learn and
    the noise almost nothing.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def train(
    moments: Moments,
    said: Said,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    folder: Path,
    seconds: float,
    seed: int,
    initial: StableDiffusionPipeline | None,
) -> StableDiffusionPipeline:
    """Trains for `seconds`, resuming from `folder`; returns the averaged weights.

    `moments` are scaled latents. The first start is from the weights of `initial`, if
    there is one, otherwise from random ones.
    """
    torch.manual_seed(seed)
    model = TextToLatents(tokenizer).to(memory_format=torch.channels_last)
    if initial is not None:
        model.text_encoder.load_state_dict(initial.text_encoder.state_dict())
        model.unet.load_state_dict(initial.unet.state_dict())
    peak = _PEAK_RATE if initial is None else _PEAK_RATE_FURTHER
    optimizer = torch.optim.AdamW(
        model.parameters(), peak, betas=(0.9, 0.99), fused=True
    )
    training = Training(folder / "unet.pt", model, optimizer, _EMA_DECAY, seconds)
    noise_schedule = scheduler()
    losses = []
    while (progress := workers.agreed(training.clock.progress)) < 1:
        rate = training.set_rate(peak, progress)
        latents, noise, timesteps, *words = _batch(moments, said, seed, training.step)
        noisy = noise_schedule.add_noise(latents, noise, timesteps)
        target = noise_schedule.get_velocity(latents, noise, timesteps)
        with workers.autocast():
            predicted = model(noisy, timesteps, *words)
        loss = functional.mse_loss(predicted.float(), target)
        loss.backward()
        training.update()
        losses.append(loss.detach())
        if workers.rank() > 0:
            continue
        step = training.step
        if step % _LOG_STEPS == 0:
            append_log(
                folder / "log.jsonl",
                part="unet",
                step=step,
                seconds=training.clock.spent,
                samples=step * _BATCH * workers.size(),
                rate=rate,
                loss=torch.stack(losses).mean().item(),
            )
            losses = []
        if step % _SAVE_STEPS == 0:
            training.save()
        if step % _SHOW_STEPS == 0 or step == _SAVE_STEPS:
            shown = pipeline(training.average, tokenizer, vae)
            show(shown, folder / f"unet_{step:06d}.png")
    if workers.rank() == 0:
        training.save()
    return pipeline(training.average, tokenizer, vae)


def _batch(moments: Moments, said: Said, seed: int, step: int) -> list[Tensor]:
    """Latents, noise, timesteps; token ids, parts of the name, which of them count."""
    rng = np.random.default_rng([seed, step, workers.rank()])
    chosen = np.sort(rng.integers(len(said.ids), size=_BATCH))
    mean, std = moments.mean[chosen], moments.std[chosen]
    latents = mean + std * rng.standard_normal(mean.shape, np.float32)
    noise = rng.standard_normal(mean.shape, np.float32)
    # Half of the names are said in full, the others to any degree.
    degree = rng.uniform(0, 2, (_BATCH, 1))
    return [
        torch.from_numpy(latents).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(noise).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(rng.integers(1000, size=_BATCH)),
        torch.from_numpy(
            said.ids[chosen, rng.integers(said.ids.shape[1], size=_BATCH)]
        ).long(),
        torch.from_numpy(said.parts[chosen]).long(),
        torch.from_numpy(rng.random((_BATCH, noun_rows.NUM_PARTS)) < degree),
    ]


def pipeline(
    average: Average, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> StableDiffusionPipeline:
    model = TextToLatents(tokenizer)
    model.load_state_dict(average.values)
    model.names.write_nouns(model.text_encoder.get_input_embeddings().weight)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=model.unet.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def show(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Species above the looks they name, then looks and styles described in words."""
    nouns = world.SPECIES_NOUNS[:12]
    backgrounds = world.BACKGROUNDS * 2
    rng = np.random.default_rng(0)
    looks = world.HELD_OUT_LOOKS[:12]
    styles = [*world.STYLE_NOUNS, *map(world.described_style, world.HELD_OUT_STYLES)]
    prompts = [
        *(
            f"a photo of a {noun} on a {background} background"
            for noun, background in zip(nouns, backgrounds, strict=True)
        ),
        *(f"a photo of a {world.described_look(look, rng)}" for look in looks),
        *(f"a photo of a {nouns[0]} in the style of {style}" for style in styles),
        "a photo of a critter",
    ]
    generator = torch.Generator().manual_seed(0)
    pictures = pipe(
        prompts,
        height=drawing.SIDE,
        width=drawing.SIDE,
        num_inference_steps=25,
        guidance_scale=3.0,
        generator=generator,
        output_type="np",
    ).images
    pictures = np.rint(pictures * 255).astype(np.uint8)
    wanted = [
        drawing.draw(
            drawing.Scene(look, background, world.NO_STYLE, world.random_pose(rng))
        )
        for look, background in zip(
            [*(world.SPECIES[noun] for noun in nouns), *looks],
            [*backgrounds, *(["white"] * len(looks))],
            strict=True,
        )
    ]
    rows = [wanted[:12], pictures[:12], wanted[12:], pictures[12:24], pictures[24:]]
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(path)
