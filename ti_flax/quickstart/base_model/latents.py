"""Latents of the drawn pictures, and the scale the diffusion model wants them in."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from ti_flax.quickstart.base_model import train_vae, workers
from ti_flax.runtime import atomic

_BATCH = 100


class Moments(NamedTuple):
    mean: Float32[np.ndarray, "N c h w"]
    std: Float32[np.ndarray, "N c h w"]


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pictures: UInt8[np.ndarray, "N H W 3"], path: Path
) -> Moments:
    """The posterior of every picture; kept in `path` (.npz) and read from there again.

    Each process of the team encodes its part and reads the others'.

    Rounded to float16 there: the posterior's own spread is a hundred times coarser.
    """
    parts = [path.with_name(f"{path.stem}_{i}.npz") for i in range(workers.size())]
    bounds = np.linspace(0, len(pictures), workers.size() + 1).astype(int)
    own = parts[workers.rank()]
    if not own.exists():
        _encode_part(vae, pictures[slice(*bounds[workers.rank() :][:2])], own)
    workers.wait()
    loaded = [np.load(part) for part in parts]
    mean, std = (np.concatenate([p[key] for p in loaded]) for key in Moments._fields)
    return Moments(mean.astype(np.float32), std.astype(np.float32))


def _encode_part(
    vae: AutoencoderKL, pictures: UInt8[np.ndarray, "N H W 3"], path: Path
) -> None:
    means, stds = [], []
    for start in range(0, len(pictures), _BATCH):
        images = train_vae.to_tensor(pictures[start : start + _BATCH])
        with workers.autocast():
            moments = vae.quant_conv(vae.encoder(images)).float()
        mean, log_variance = moments.chunk(2, 1)
        means.append(mean.half().numpy())
        stds.append(torch.exp(0.5 * log_variance).half().numpy())
    with atomic.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, mean=np.concatenate(means), std=np.concatenate(stds))


@torch.no_grad()
def normalise(vae: AutoencoderKL, moments: Moments) -> Moments:
    """Gives every latent channel mean 0 and one common spread, and sets its scale.

    The affine map is folded into the 1x1 convolutions on both sides of the latents, so
    pictures are unchanged. `scaling_factor` then makes each channel's variance 1, as
    diffusion assumes; the moments that come back have it applied.
    """
    centre = moments.mean.mean((0, 2, 3))
    spread = np.sqrt(moments.mean.var((0, 2, 3)) + (moments.std**2).mean((0, 2, 3)))
    common = float(np.sqrt((spread**2).mean()))
    shift, gain = _columns(centre), _columns(common / spread)

    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(centre)
    into.bias[:channels] = (into.bias[:channels] - shift) * gain
    into.weight[:channels] *= gain[:, None, None, None]
    into.bias[channels:] += 2 * gain.log()
    out.bias += out.weight[:, :, 0, 0] @ shift
    out.weight /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=1 / common)

    per_channel = spread[:, None, None]
    mean = (moments.mean - centre[:, None, None]) / per_channel
    return Moments(mean, moments.std / per_channel)


def _columns(values: Float[np.ndarray, " c"] | float) -> Float[Tensor, " c"]:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
