"""Which family a model is of, by its settings."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ti_flax.models import attention, ldm, sdxl, stable_diffusion
from ti_flax.models.family import Family


def make_family(
    configs: Mapping[str, Mapping[str, Any]],
    dtype: DTypeLike = jnp.float32,
    plan: attention.Plan = attention.Plan(),  # noqa: B008, a tuple
) -> Family:
    """The networks that the configurations, by part, describe.

    The denoiser is computed in `dtype`, its attention as `plan` says.

    Raises `UserError` for configurations of no family, or that do not fit one another.
    """
    module = stable_diffusion
    if sdxl.claims(configs["unet"]):
        module = sdxl
    elif ldm.claims(configs["text_encoder"]):
        module = ldm
    return module.make_family(configs, dtype, plan)


def parts(net: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the networks of a model with such a UNet.

    Raises `UserError` for a relative that is not supported.
    """
    return sdxl.parts(net) if sdxl.claims(net) else stable_diffusion.PARTS
