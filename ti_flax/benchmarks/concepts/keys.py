"""Every key of `python -m ti_flax.benchmark concepts`: type, default, unit, limits."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from ti_flax.benchmarks.quality.keys import JudgingKeys, LearningKeys
from ti_flax.config.fields import (
    Count,
    FilePath,
    Integer,
    NameOrPath,
    OptionalFilePath,
    Settings,
)
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings

_MOST_CONCEPTS = 1000


class WorkKeys(Settings):
    """What is learned, and how many at once."""

    model: NameOrPath = Field(
        str(settings.MODEL), description="base model, which knows the world"
    )
    concepts: Count = Field(
        64,
        le=_MOST_CONCEPTS,
        description="held-out looks and styles to learn, again and again from other "
        "pictures",
    )
    slots: Count = Field(16, le=1024, description="concepts that are trained at once")
    alone: Integer = Field(
        0,
        ge=0,
        le=_MOST_CONCEPTS,
        description="of these, the first to be learned by a command each, too",
    )
    pytorch: Literal["no", "same", "script"] = Field(
        "no",
        description="run as many of PyTorch, one after another, for all of "
        "max_train_steps: the same work in a step, or what diffusers' script does",
    )
    pytorch_python: OptionalFilePath = Field(
        None,
        description="the Python that has PyTorch, where it is not this one; it needs "
        "what ti_flax needs, too",
    )


class ReportKeys(JudgingKeys):
    """What is told of it, and where."""

    judge: bool = Field(
        True, description="judge pictures of each word, which takes longer than words"
    )
    output_dir: FilePath = Field(
        Path("output/concepts"),
        description="folder of pictures, words and times, and of report.json; with the "
        "same keys it goes on with what is there",
    )


# pydantic lists the fields of the last base first.
class ConceptsKeys(ReportKeys, StoppingKeys, LearningKeys, WorkKeys):
    """All keys, checked and frozen."""


# Title in --help -> its keys.
GROUPS: dict[str, type[BaseModel]] = {
    "Work": WorkKeys,
    "Training": LearningKeys,
    "Stopping": StoppingKeys,
    "Report": ReportKeys,
}
