"""Keys of a run of several concepts, and which keys each concept may have for itself.

The others are of the compiled step, of what stays on the devices, or of the whole run.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, Field

from ti_flax.config import dataset_config
from ti_flax.config.caption_keys import CaptionKeys
from ti_flax.config.fields import (
    OptionalFilePath,
    OptionalInteger,
    OptionalName,
    Settings,
    Texts,
)
from ti_flax.config.run_config import Config
from ti_flax.config.run_keys import ConceptKeys
from ti_flax.config.start_keys import StartKeys
from ti_flax.runtime import arguments
from ti_flax.runtime.errors import shown

# Concepts of a run, each of them with each of the values to be swept.
MOST_CONCEPTS = 100_000
MOST_SLOTS = 1024

_T = TypeVar("_T")


class Part(NamedTuple):
    """Which concepts of a list a process trains, beside others with the rest of it."""

    index: int = 0  # from 0
    count: int = 1

    @classmethod
    def of(cls, text: str) -> "Part":
        """That of I/N. Raises `ValueError` for another text."""
        numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(*map(int, numbers.groups())) if numbers else cls(0, 0)
        if part.index >= part.count:
            raise ValueError(
                f"expected I/N with I from 0 to N - 1, found {shown(text)}"
            )
        return part

    def own(self, listed: Sequence[_T]) -> list[_T]:
        """Every `count`-th."""
        return [*listed[self.index :: self.count]]

    @property
    def suffix(self) -> str:
        """What names of its files have, so that parts can share a folder."""
        return f"-{self.index}-of-{self.count}" if self.count > 1 else ""


def _checked_part(text: str | None) -> str | None:
    if text is not None:
        Part.of(text)
    return text


class ManyKeys(Settings):
    """Which concepts are trained, and how many at once."""

    concepts: OptionalFilePath = Field(
        None,
        description="YAML file of `name: {key: value}`, or of a list of `key: value`; "
        "or a folder with a folder of pictures for each concept; their keys win over "
        "all others",
    )
    sweep: Texts = Field(
        (),
        description="values to train every concept with, each with each: "
        "KEY=VALUE,VALUE ...; in YAML, `key: [value, value]`",
    )
    slots: OptionalInteger = Field(
        None,
        ge=1,
        le=MOST_SLOTS,
        description="concepts that are trained at once; none: as many as there are and "
        "as memory holds, at most 16",
    )
    part: Annotated[OptionalName, AfterValidator(_checked_part)] = Field(
        None,
        description="I/N trains every N-th concept from number I on, counted from 0: N "
        "processes, on as many machines or devices, share a list and an output_dir",
    )
    skip_bad_concepts: bool = Field(
        False, description="train the others where a concept has a mistake"
    )


# What a concept may have for itself.
OWN = frozenset(
    {
        *ConceptKeys.model_fields,
        *StartKeys.model_fields,
        *CaptionKeys.model_fields,
        # Masks: where they are, and their numbers.
        "alpha_mask",
        "conditioning_data_dir",
        "unmasked_weight",
        "unmasked_probability",
        # How long, and how fast.
        "seed",
        "max_train_steps",
        "learning_rate",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_num_cycles",
        "lr_power",
        "lr_decay_steps",
        # When it has learned.
        "stop",
        "dvar_eps",
        "plateau_patience",
        "plateau_min_delta",
        "keep",
        # What is shown and kept of it.
        "validation_prompt",
        "num_validation_images",
        "validation_control",
        "validation_steps",
        "checkpointing_steps",
        "words_total_limit",
        "license",
        "hub_model_id",
    }
)

_SHARED = ({*Config.model_fields, *ManyKeys.model_fields} - OWN) | {dataset_config.KEY}


def mistake_of_key(key: Any) -> str | None:
    """What is wrong with a concept's setting a key, if anything is."""
    if isinstance(key, str) and key in OWN:
        return None
    if isinstance(key, str) and key in _SHARED:
        return f"{key} is the same for all concepts; set it beside concepts"
    return f"unknown key {shown(key)}; {arguments.nearest(str(key)[:100], sorted(OWN))}"


def mistake_of_value(value: Any) -> str | None:
    """What is wrong with the kind of a value, if anything is."""
    several = value if isinstance(value, list) else [value]
    if any(isinstance(one, dict | list | set | tuple | bytes) for one in several):
        return (
            f"expected a value, or a list of them, found {shown(value)}; a key has no "
            "keys of its own"
        )
    return None
