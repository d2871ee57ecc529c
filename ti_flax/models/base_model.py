"""Stable Diffusion folders and Hub repositories, in diffusers' layout, to Flax params.

Tensors go from safetensors to the device one at a time, so that loading needs little
more memory than the params themselves. Torch is not needed.
"""

import concurrent.futures
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ti_flax.models import attention, clip_text, unet, vae
from ti_flax.models.sources import STEMS, find_folder, read_json, weight_files
from ti_flax.models.torch_params import Layout, Params, load_params
from ti_flax.runtime.errors import UserError


class BaseModel(NamedTuple):
    """A frozen Stable Diffusion: its modules, which hold no arrays, and its folder.

    `scheduler` is the content of scheduler_config.json; `sample_size` is the side of
    the square latents that the UNet was trained on.
    """

    folder: Path
    variant: str | None
    text_encoder: clip_text.ClipText
    unet: unet.UNet
    vae: vae.Vae
    scheduler: Mapping[str, Any]
    sample_size: int

    def load(
        self, component: str, sharding: jax.sharding.Sharding | Layout | None = None
    ) -> Params:
        """The params of `text_encoder`, `unet` or `vae`, placed as `sharding` says.

        Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
        """
        module = getattr(self, component)
        return load_params(self.folder / component, module, self.variant, sharding)

    def fingerprint(self) -> str:
        """SHA-256 over configurations and weight files, in hexadecimal."""
        paths = [self.folder / "scheduler" / "scheduler_config.json"]
        for name in STEMS:
            folder = self.folder / name
            paths += [folder / "config.json", *weight_files(folder, self.variant)]

        def digest(path: Path) -> bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        # hashlib lets other threads run: gigabytes take seconds.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(digest, paths))).hexdigest()


def unet_dtype(mixed_precision: str, platform: str | None = None) -> DTypeLike:
    """What `mixed_precision` (auto, no, bf16) makes of the UNet on `platform`, by
    default this machine's."""
    if mixed_precision == "auto":
        # XLA's CPU backend computes bfloat16 no faster than float32.
        on_cpu = (platform or jax.default_backend()) == "cpu"
        mixed_precision = "no" if on_cpu else "bf16"
    return {"no": jnp.float32, "bf16": jnp.bfloat16}[mixed_precision]


def open_model(
    name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
    download_weights: bool = True,
) -> BaseModel:
    """Opens a diffusers folder or a Hub repository id; no weights are read yet.

    The UNet will be held and computed in `dtype`, its attention as `plan` says; text
    encoder and VAE in float32. Without `download_weights` a Hub repository is asked
    for its configuration only.

    Raises `UserError` when a file is missing or the model is of another family.
    """
    folder = find_folder(name_or_path, revision, variant, download_weights)
    configs = {name: read_json(folder / name / "config.json") for name in STEMS}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return BaseModel(
        folder,
        variant,
        **make_modules(configs, dtype, plan),
        scheduler=scheduler,
        # 64 is the side in Stable Diffusion 1.x, whose oldest files lack it.
        sample_size=configs["unet"].get("sample_size") or 64,
    )


def make_modules(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> dict[str, nn.Module]:
    """The networks that the configurations describe; they must fit one another."""

    def parse(component: str, config_class: type) -> Any:
        try:
            return config_class.from_json(configs[component])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{component}: config.json is incomplete or damaged ({error!r}); "
                "download the model again"
            ) from error

    text = clip_text.ClipText(parse("text_encoder", clip_text.ClipTextConfig))
    net = unet.UNet(parse("unet", unet.UNetConfig), dtype, plan)
    auto = vae.Vae(parse("vae", vae.VaeConfig))
    if net.config.cross_attention_dim != text.config.hidden_size:
        raise UserError(
            f"the unet's cross_attention_dim {net.config.cross_attention_dim} is not "
            f"the text encoder's hidden_size {text.config.hidden_size}; use the "
            "folders of one model"
        )
    if net.config.in_channels != auto.config.latent_channels:
        raise UserError(
            f"the unet takes {net.config.in_channels} channels, the vae makes "
            f"{auto.config.latent_channels}; inpainting and depth models are not "
            "supported, use a text-to-image model"
        )
    return {"text_encoder": text, "unet": net, "vae": auto}
