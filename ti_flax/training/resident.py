"""What lies on the devices during a run: weights and encoded pictures."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from ti_flax.config import run_config
from ti_flax.data.moments import encode_in_batches
from ti_flax.generation import previews
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import hosts, sharding
from ti_flax.step.bank import Bank
from ti_flax.text.initial_rows import vocabulary_norms
from ti_flax.training.inputs import Inputs
from ti_flax.training.recipe import make_bank

ENCODE_BATCH_SIZE = 4


class Resident(NamedTuple):
    """What lies on the devices during a run."""

    # Of `text_encoder` and `unet`; with previews, of `vae` what decodes.
    params: Mapping[str, Params]
    bank: Bank
    initial_rows: Float32[np.ndarray, "K D"]
    # 99 % of the vocabulary's rows are shorter.
    high_norm: float


def load(config: run_config.Config, inputs: Inputs, progress: bool) -> Resident:
    """Reads the weights, encodes the pictures and puts all on the devices.

    The VAE stays there only as far as previews need it.
    """
    model, mesh = inputs.model, inputs.mesh
    vae_params = model.load("vae")
    moments = encode_pictures(
        model,
        vae_params,
        inputs.pictures.images,
        config.random_flip,
        ENCODE_BATCH_SIZE,
        progress,
    )
    layout = functools.partial(sharding.over_fsdp, mesh)
    params = {name: model.load(name, layout) for name in ("text_encoder", "unet")}
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    if inputs.previews is not None:
        decoder = previews.decoder_params(vae_params)
        params["vae"] = sharding.replicate(decoder, mesh)
    hosts.barrier()
    whole_table = sharding.whole(table)
    rows = inputs.initial_rows(whole_table)
    median_norm, high_norm = vocabulary_norms(whole_table)
    norm = median_norm if config.hold_row_norm == "median" else high_norm
    bank = make_bank(config, moments, inputs.prompts, rows, norm)
    return Resident(
        params=params,
        bank=sharding.replicate(bank, mesh),
        initial_rows=rows,
        high_norm=high_norm,
    )


def jit_encode(model: base_model.BaseModel) -> jax.stages.Wrapped:
    """The jitted (params of the VAE, pixels) to moments."""
    return jax.jit(
        lambda params, pixels: model.vae.apply(
            {"params": params}, pixels, method="encode"
        )
    )


def encode_pictures(
    model: base_model.BaseModel,
    params: Params,
    images: UInt8[np.ndarray, "N H W 3"],
    flip: bool,
    batch_size: int,
    progress: bool,
) -> Float32[np.ndarray, "N F h w two_c"]:
    """VAE moments of every picture and, with `flip`, of its mirror image (F = 2)."""
    encode = jit_encode(model)
    batch_size = min(batch_size, len(images) * (1 + flip))
    return encode_in_batches(
        images, lambda pixels: encode(params, pixels), batch_size, flip, progress
    )
