"""A base model: its family, which holds no arrays, and where its weights are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ti_flax.models import attention, families
from ti_flax.models.family import Family, TextEncoder
from ti_flax.models.opening import Choices, open_source
from ti_flax.models.sources import Source
from ti_flax.models.torch_params import Layout, Params, load_params


class BaseModel(NamedTuple):
    """A frozen text-to-image model; weights are read part by part, when asked for."""

    family: Family
    source: Source
    # The content of scheduler_config.json, which names the model's own sampler.
    scheduler: Mapping[str, Any]

    def tokenizer(self, encoder: TextEncoder) -> Path:
        """The folder of a text encoder's tokenizer."""
        return self.source.tokenizer(encoder.tokenizer)

    def load(
        self, part: str, sharding: jax.sharding.Sharding | Layout | None = None
    ) -> Params:
        """The params of a part of the family, placed as `sharding` says.

        Tensors go to the device one at a time, so that loading needs little more
        memory than the params themselves.

        Raises `UserError` that lists every unknown, missing, doubled and misshapen key.
        """
        return load_params(self.source, part, self.family.parts[part], sharding)

    def fingerprint(self) -> str:
        """SHA-256 over configurations and weight files, in hexadecimal."""
        return self.source.fingerprint(self.family.parts)


def denoiser_dtype(mixed_precision: str, platform: str | None = None) -> DTypeLike:
    """The dtype of the denoiser that `mixed_precision` (auto, no, bf16) asks for.

    `platform` is this machine's by default.
    """
    if mixed_precision == "auto":
        # A CPU without bfloat16 arithmetic converts at every step of a sum.
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
    choices: Choices = Choices(),  # noqa: B008, a tuple
) -> BaseModel:
    """Opens a diffusers folder, a Hub repository id or a file; no weights are read yet.

    The denoiser will be held and computed in `dtype`, its attention as `plan` says;
    the rest in float32. Without `download_weights` a Hub repository is asked for its
    configuration only. `choices` say what the files leave open.

    Raises `UserError` when a file is missing or the model is of another family.
    """
    source, fetch = open_source(name_or_path, revision, variant, choices)
    net = source.config("unet")
    named = (*families.parts(net), "scheduler", "model_index")
    configs = {part: source.config(part) for part in named}
    configs["scheduler"] = {**configs["scheduler"], **choices.noise()}
    family = families.make_family(configs, dtype, plan)
    if download_weights:
        fetch(family.parts)
    return BaseModel(family, source, {**family.scheduler, **configs["scheduler"]})
