"""Every key of `python -m ti_flax.benchmark quality`: type, default, unit, limits."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from ti_flax.config.fields import (
    LARGEST_BATCH,
    MOST_STEPS,
    Count,
    FilePath,
    Integer,
    LrScheduler,
    NameOrPath,
    Number,
    OptionalInteger,
    OptionalNumber,
    Settings,
)
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings

Method = Literal["templates", "captions", "masks"]

_AS_QUICKSTART = "none: as configs/quickstart.yaml"


class LearningKeys(Settings):
    """How a concept is learned."""

    train_batch_size: OptionalInteger = Field(
        None,
        ge=1,
        le=LARGEST_BATCH,
        description=f"examples of each concept in a step; {_AS_QUICKSTART}",
    )
    max_train_steps: OptionalInteger = Field(
        None, ge=1, le=MOST_STEPS, description=f"length of the run; {_AS_QUICKSTART}"
    )
    learning_rate: OptionalNumber = Field(
        None, gt=0, le=1e6, description=f"peak of the learning rate; {_AS_QUICKSTART}"
    )
    lr_scheduler: LrScheduler | None = Field(
        None, description=f"course of the learning rate; {_AS_QUICKSTART}"
    )
    seed: Integer = Field(0, ge=0, lt=2**32, description="start of every random number")


class TrainingKeys(LearningKeys):
    """How the concepts are learned, all at once."""

    model: NameOrPath = Field(
        str(settings.MODEL), description="base model, which knows the world"
    )
    objects: Count = Field(12, le=24, description="held-out looks to learn")
    methods: tuple[Method, ...] = Field(
        ("templates",),
        min_length=1,
        max_length=3,
        description="how they are learned, each beside the first: with templates, with "
        "captions that say the background, with masks that leave it out (looks only)",
    )
    one_background: bool = Field(
        False, description="all pictures of a concept on one background, else on five"
    )
    unmasked_weight: OptionalNumber = Field(
        None, ge=0, le=1, description="with masks: what the loss counts outside them"
    )
    unmasked_probability: OptionalNumber = Field(
        None, ge=0, le=1, description="with masks: chance of an example without its own"
    )
    repeats: Count = Field(
        1, le=100, description="times to learn each concept, from other pictures"
    )

    @field_validator("methods")
    @classmethod
    def _once_each(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if len(set(methods)) < len(methods) or methods[0] == "masks":
            raise ValueError(
                "expected templates or captions first and each method once, found "
                f"{' '.join(methods)}"
            )
        return methods


class JudgingKeys(Settings):
    """What is generated of a word, and judged."""

    num_images: Count = Field(
        12, le=1000, description="pictures of each word, in as many contexts"
    )
    steps: Count = Field(20, le=1000, description="steps from noise to picture")
    guidance_scale: Number = Field(
        3.0, ge=0, le=1000, description="weight of the prompt"
    )


class PictureKeys(JudgingKeys):
    """What is generated and judged."""

    species: Count = Field(
        20, le=40, description="species nouns to compare with, of the 40 of the world"
    )
    output: FilePath = Field(
        Path("output/quality.json"),
        description="file for all numbers of the table",
    )


# pydantic lists the fields of the last base first.
class QualityKeys(PictureKeys, StoppingKeys, TrainingKeys):
    """All keys, checked and frozen."""


# Title in --help -> its keys.
GROUPS: dict[str, type[BaseModel]] = {
    "Training": TrainingKeys,
    "Stopping": StoppingKeys,
    "Pictures": PictureKeys,
}
