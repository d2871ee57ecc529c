"""Every key of `python -m ti_flax.benchmark quality`: type, default, unit, limits."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from ti_flax.benchmarks.quality import methods
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
    Texts,
)
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings

Split = Literal["development", "held_out"]

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
    split: Split = Field(
        "held_out",
        description="what is learned: looks and styles that the model never saw, for a "
        "result; or others, that it may have seen, to choose methods by",
    )
    objects: Count = Field(24, le=24, description="looks to learn")
    methods: Texts = Field(
        (methods.DEFAULT.name,),
        min_length=1,
        description="how they are learned, each beside the first: "
        f"{', '.join(methods.METHODS)}; or of your own, as in "
        "slow:learning_rate=1e-3,lr_scheduler=constant",
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
    def _once_each(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        read = [*map(methods.read, texts)]
        names = [method.name for method in read]
        if len(set(names)) < len(names):
            raise ValueError(f"expected each method once, found {' '.join(names)}")
        if read[0].teaching == "masks":
            raise ValueError(
                "expected a method first that styles are learned by, too, found masks"
            )
        return texts


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
    judge_after: tuple[Annotated[Count, Field(le=MOST_STEPS)], ...] = Field(
        (),
        description="also judge the words as they are after so many steps, each fewer "
        "than max_train_steps, as in 50 100 200: says how soon they are learned",
    )
    output: FilePath = Field(
        Path("output/quality.json"),
        description="file for all numbers of the table",
    )

    @field_validator("judge_after")
    @classmethod
    def _from_the_least_up(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if any(after <= before for before, after in itertools.pairwise((0, *counts))):
            told = " ".join(map(str, counts))
            raise ValueError(
                f"expected counts of steps from the least up, each once, found {told}"
            )
        return counts


# pydantic lists the fields of the last base first.
class QualityKeys(PictureKeys, StoppingKeys, TrainingKeys):
    """All keys, checked and frozen."""


# Title in --help -> its keys.
GROUPS: dict[str, type[BaseModel]] = {
    "Training": TrainingKeys,
    "Stopping": StoppingKeys,
    "Pictures": PictureKeys,
}
