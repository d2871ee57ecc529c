"""Trains the quickstart model's autoencoder: 64x64 pictures to 16x16x4 latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ti_flax.quickstart.base_model import workers
from ti_flax.quickstart.base_model.clock import Average, Training, append_log

_BATCH = 8  # in each process
_PEAK_RATE = 1e-3
_KL_WEIGHT = 1e-4  # per latent element, against losses per pixel value
# Before the latents carry anything, the divergence would drown them in noise for good.
_KL_STEPS = (500, 2500)  # its weight is zero before, whole after
_EDGE_WEIGHT = 0.5
_EMA_DECAY = 0.999
_LOG_STEPS = 100
_SAVE_STEPS = 500


def build() -> AutoencoderKL:
    """Few channels where pixels are many: there the time goes."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
    )
    # Noise of the prior's size would drown the latents before they carry anything.
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.latent_channels :] = -6.0
    return vae


def train(
    pictures: UInt8[np.ndarray, "N H W 3"], folder: Path, seconds: float, seed: int
) -> AutoencoderKL:
    """Trains for `seconds`, resuming from `folder`; returns the averaged weights.

    The last pictures of the cache are held out for the reconstructions it shows.
    """
    torch.manual_seed(seed)
    vae = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        vae.parameters(), _PEAK_RATE, weight_decay=1e-4, fused=True
    )
    training = Training(folder / "vae.pt", vae, optimizer, _EMA_DECAY, seconds)
    compile_blocks(vae)
    losses = []
    while (progress := workers.agreed(training.clock.progress)) < 1:
        rate = training.set_rate(_PEAK_RATE, progress)
        step = training.step
        with workers.autocast():
            parts = _losses(vae, _batch(pictures[:-256], seed, step))
        l1, l2, edge, kl = parts
        kl_weight = _KL_WEIGHT * np.interp(step, _KL_STEPS, (0, 1))
        (l1 + l2 + _EDGE_WEIGHT * edge + kl_weight * kl).backward()
        training.update()
        losses.append(torch.stack(parts).detach())
        if workers.rank() > 0:
            continue
        step = training.step
        if step % _LOG_STEPS == 0:
            means = torch.stack(losses).mean(0).tolist()
            losses = []
            append_log(
                folder / "log.jsonl",
                part="vae",
                step=step,
                seconds=training.clock.spent,
                samples=step * _BATCH * workers.size(),
                rate=rate,
                **dict(zip(("l1", "l2", "edge", "kl"), means, strict=True)),
            )
        if step % _SAVE_STEPS == 0:
            training.save()
            _show(training.average, pictures[-32:], folder / f"vae_{step:06d}.png")
    if workers.rank() == 0:
        training.save()
        _show(training.average, pictures[-32:], folder / "vae_final.png")
    vae.load_state_dict(training.average.values)
    return vae.eval()


def compile_blocks(network: torch.nn.Module) -> None:
    """Fuses each residual block's norms and activations, which halves a step's time.

    Compiled as a whole (torch 2.13, CPU, bfloat16), the autoencoder's gradient comes
    out as zero everywhere but in its last convolution.
    """
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile(dynamic=False)


def _losses(
    vae: AutoencoderKL, images: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean absolute and squared error, error of the edges, divergence to a normal."""
    moments = vae.quant_conv(vae.encoder(images)).float()
    mean, log_variance = moments.chunk(2, 1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    error = vae.decoder(vae.post_quant_conv(latents)).float() - images
    across, down = error.diff(dim=3), error.diff(dim=2)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    edge = across.abs().mean() + down.abs().mean()
    return error.abs().mean(), (error**2).mean(), edge, kl


def _batch(
    pictures: UInt8[np.ndarray, "N H W 3"], seed: int, step: int
) -> Float[Tensor, "B 3 H W"]:
    rng = np.random.default_rng([seed, step, workers.rank()])
    chosen = pictures[np.sort(rng.integers(len(pictures), size=_BATCH))]
    return to_tensor(chosen[:, :, ::-1] if rng.random() < 0.5 else chosen)


def to_tensor(images: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Pictures as the VAE wants them, in [-1, 1]; memory stays channels last."""
    scaled = images.astype(np.float32) / 127.5 - 1
    return torch.from_numpy(scaled).permute(0, 3, 1, 2)


def to_pictures(images: Float[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    scaled = (images.detach().float() * 127.5 + 127.5).clamp(0, 255).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


@torch.no_grad()
def _show(
    average: Average, originals: UInt8[np.ndarray, "N H W 3"], path: Path
) -> None:
    """Rows of originals, each above its reconstructions by the averaged weights."""
    vae = build()
    vae.load_state_dict(average.values)
    latents = vae.encode(to_tensor(np.ascontiguousarray(originals))).latent_dist.mode()
    copies = to_pictures(vae.decode(latents).sample)
    rows = []
    for start in range(0, len(originals), 16):
        rows += [np.hstack(originals[start : start + 16])]
        rows += [np.hstack(copies[start : start + 16])]
    Image.fromarray(np.vstack(rows)).save(path)
