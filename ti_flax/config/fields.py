"""Types of configuration keys, and the base of their groups."""

import functools
import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
)

_log = logging.getLogger(__name__)


def _no_switch(value: Any) -> Any:
    # To Python, and so to pydantic, true is the number 1.
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


def _path(value: Any) -> Any:
    # An empty text, such as an unset shell variable, would mean the current folder.
    if value == "":
        raise ValueError("expected a path, found an empty text")
    named = isinstance(value, str | os.PathLike)
    return os.path.expanduser(value) if named else value


def _precision(value: Any) -> Any:
    if value is False:  # what YAML makes of a bare `no`
        return "no"
    if value == "fp16":
        _tell_of_float16()
        return "bf16"
    return value


@functools.cache  # each concept of a list is checked
def _tell_of_float16() -> None:
    _log.warning(
        "mixed_precision: bf16 is taken for fp16, which would need its loss to be "
        "scaled; bfloat16 has a wider range and does without"
    )


def _side(value: Any) -> Any:
    """A side of a square, also where both are given as in kohya's `512,512`."""
    sides = value.split(",") if isinstance(value, str) else [value]
    if len({str(side).strip() for side in sides}) == 1:
        return sides[0]
    raise ValueError(
        f"expected one side of a square, found {value!r}; give one, and enable_bucket "
        "for tall and wide pictures"
    )


def _limit(value: Any) -> Any:
    return None if str(value) in ("0", "0.0") else value  # kohya's word for none


def _zero_allowed(schema: dict[str, Any]) -> None:
    """Of a field whose limits are above what `_limit` takes for none."""
    for each in schema.get("anyOf", []):
        if "exclusiveMinimum" in each:
            each["minimum"] = each.pop("exclusiveMinimum")


def _secret(value: Any) -> Any:
    # Never refused: an error message would show the value.
    if value is None or isinstance(value, SecretStr):
        return value
    return SecretStr(str(value)) if value != "" else None


# The largest values that can mean something; larger ones are slips of a finger.
LARGEST_SIDE = 4096  # pixels; attention over 512 x 512 latents fits no device
LARGEST_BATCH = 2**14  # two such factors are counted in 32 bits
MOST_STEPS = 10**9  # counted in 32 bits as well
MOST_DEVICES = 2**16
MOST_TIMESTEPS = 100_000  # of a model's schedule

Integer = Annotated[int, BeforeValidator(_no_switch)]
Count = Annotated[Integer, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_switch)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
OptionalName = Annotated[str | None, Field(min_length=1)]
NameOrPath = Annotated[str, BeforeValidator(_path)]
OptionalNameOrPath = Annotated[str | None, BeforeValidator(_path)]
FilePath = Annotated[Path, BeforeValidator(_path)]
OptionalFilePath = Annotated[Path | None, BeforeValidator(_path)]
OptionalInteger = Annotated[int | None, BeforeValidator(_no_switch)]
OptionalNumber = Annotated[float | None, BeforeValidator(_no_switch)]
OptionalLimit = Annotated[
    OptionalNumber, BeforeValidator(_limit), Field(json_schema_extra=_zero_allowed)
]
Side = Annotated[Count, BeforeValidator(_side)]
# Left out of everything that is written or printed.
Secret = Annotated[SecretStr | None, BeforeValidator(_secret), Field(exclude=True)]
Revision = Annotated[
    OptionalName, Field(description="branch, tag or commit of the Hub repository")
]
Variant = Annotated[
    OptionalName, Field(description="variant of the weight files, such as fp16")
]
Precision = Annotated[
    Literal["auto", "no", "bf16"],
    BeforeValidator(_precision),
    Field(
        description="arithmetic of the UNet: bf16, no (float32), or auto: bf16 on TPU "
        "and GPU, float32 on CPU"
    ),
]
AttentionName = Annotated[
    Literal["auto", "plain", "chunked", "splash", "cudnn"],
    Field(
        description="attention of the UNet: plain, chunked (a part of the scores at a "
        "time), splash (TPU) or cudnn (NVIDIA GPU, bf16) where the shape allows, or "
        "auto: the best of them for the machine"
    ),
]


def is_adamw(name: Any) -> bool:
    """Whether other trainers call AdamW so, in whatever precision its moments are."""
    bare = str(name).casefold().replace("_", "").rpartition(".")[2]
    kind = bare.removeprefix("paged").removesuffix("8bit").removesuffix("32bit")
    return kind == "adamw"


def _optimizer(value: Any) -> Any:
    # OneTrainer has it among its settings, under the same name.
    name = value.get("optimizer") if isinstance(value, dict) else value
    return "adamw" if is_adamw(name) else value


Optimizer = Annotated[Literal["adamw", "directional"], BeforeValidator(_optimizer)]
LrScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "warmup_stable_decay",
]


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _texts(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        value = (value,)
    return tuple(map(_text, value)) if isinstance(value, list | tuple) else value


Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts, json_schema_input_type=str | list[str]),
]
NamesOrPaths = Annotated[tuple[NameOrPath, ...], BeforeValidator(_texts)]


class Settings(BaseModel):
    """What every class of keys is: frozen, without unknown keys, nan and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
