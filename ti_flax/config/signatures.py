"""The keys of the public functions, as editors, type checkers and `help` read them.

Each class stands for the keys of the same name; tests/test_face.py compares them.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Literal, Required, TypedDict, TypeVar, get_type_hints

from ti_flax.config.fields import Settings

Function = TypeVar("Function", bound=Callable)
_Path = str | os.PathLike[str]
_EMPTY = inspect.Parameter.empty


class GenerateSettings(TypedDict, total=False):
    """`config.generate_keys.GenerateKeys`."""

    model: Required[_Path]
    revision: str | None
    variant: str | None
    mixed_precision: Literal["auto", "no", "bf16"]
    attention: Literal["auto", "plain", "chunked", "splash", "cudnn"]
    embedding: _Path | Sequence[_Path]
    vae: _Path | None
    text_encoder: _Path | None
    text_encoder_2: _Path | None
    ema: bool
    prediction_type: Literal["epsilon", "v_prediction"] | None
    rescale_betas_zero_snr: bool | None
    v_parameterization: bool | None
    prompt: Required[str | Sequence[str]]
    negative_prompt: str
    num_images: int
    seed: int
    width: int | None
    height: int | None
    steps: int
    guidance_scale: float
    scheduler: Literal["ddim", "dpmpp_2m", "euler", "lcm", "pndm"] | None
    output: _Path | None
    batch_size: int | None


class ConvertSettings(TypedDict, total=False):
    """`formats.convert.ConvertKeys`."""

    source: Required[_Path | Sequence[_Path]]
    to: Required[str]
    output: Required[_Path]
    token: str | None
    json_: bool


class InspectSettings(TypedDict, total=False):
    """`formats.describe.InspectKeys`."""

    file: Required[_Path | Sequence[_Path]]
    model: _Path | None
    revision: str | None
    token: str | None
    json_: bool


class PushSettings(TypedDict, total=False):
    """`publishing.push.PushKeys`."""

    folder: Required[_Path]
    hub_model_id: str | None
    hub_private_repo: bool
    hub_token: str | None


class VerifySettings(TypedDict, total=False):
    """`config.verify_keys.VerifyKeys`."""

    source: Required[_Path]
    model: Required[_Path]
    revision: str | None
    variant: str | None
    prompt: str | None
    seed: int
    steps: int
    vae: _Path | None
    text_encoder: _Path | None
    text_encoder_2: _Path | None
    ema: bool
    prediction_type: Literal["epsilon", "v_prediction"] | None
    rescale_betas_zero_snr: bool | None
    v_parameterization: bool | None


def of_keys(settings: type[Settings], hints: type | None = None) -> inspect.Signature:
    """Each key with its type, that in `hints` where they are given, and its default."""
    kinds = get_type_hints(hints or settings)
    return inspect.Signature(
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=kinds[key],
            default=_EMPTY if field.is_required() else field.default,
        )
        for key, field in settings.model_fields.items()
    )


def with_keys_of(
    settings: type[Settings], hints: type
) -> Callable[[Function], Function]:
    """Lets `help` show each key, its type in `hints` and its default.

    It would show no more than the name of `**settings`.
    """

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        *others, _ = signature.parameters.values()
        keys = of_keys(settings, hints).parameters.values()
        function.__signature__ = signature.replace(parameters=[*others, *keys])
        return function

    return show
