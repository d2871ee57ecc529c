"""Every key of `python -m ti_flax.benchmark step|kernels`: type, default, limits."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from ti_flax.config.fields import (
    LARGEST_BATCH,
    LARGEST_SIDE,
    AttentionName,
    Count,
    FilePath,
    OptionalFilePath,
    OptionalInteger,
    Precision,
    Settings,
)


class WorkKeys(Settings):
    """What is computed."""

    model: Literal["sd15", "sd21", "sdxl", "quickstart"] = Field(
        "sd15", description="shapes of the networks; the weights are random"
    )
    resolution: OptionalInteger = Field(
        None,
        ge=64,
        multiple_of=64,
        le=LARGEST_SIDE,
        description="width and height of the pictures in pixels; none: the model's own",
    )
    train_batch_size: Count = Field(
        1,
        le=LARGEST_BATCH,
        description="examples of each concept in a step, over all devices together",
    )
    dtype: Precision = "auto"
    attention: AttentionName = "auto"


class StepWorkKeys(WorkKeys):
    """What a step computes."""

    concepts: Count = Field(1, le=4096, description="concepts that are trained at once")
    gradient_checkpointing: bool | None = Field(
        None,
        description="compute the UNet's blocks a second time in the backward pass; "
        "none: only where the device's memory is short",
    )


class MeasuringKeys(Settings):
    """How it is measured, and against what."""

    repeats: Count = Field(
        5, le=1000, description="timed turns, each after an untimed one"
    )
    pytorch: Literal["no", "same"] = Field(
        "no", description="measure PyTorch in turn with it"
    )
    pytorch_python: OptionalFilePath = Field(
        None,
        description="the Python that has PyTorch, where it is not this one; it needs "
        "what ti_flax needs, too",
    )
    together: bool = Field(
        True,
        description="both stay in memory and take turns; false: one after the other, "
        "where memory is short for both",
    )
    output: FilePath = Field(
        Path("output/kernels.json"), description="file for all numbers"
    )


class StepMeasuringKeys(MeasuringKeys):
    """How a step is measured, and against what."""

    steps: Count = Field(1, le=128, description="steps in a dispatch")
    pytorch: Literal["no", "same", "script"] = Field(
        "no",
        description="measure PyTorch in turn with it: the same work, or what "
        "diffusers' script does in a step",
    )
    output: FilePath = Field(
        Path("output/step.json"), description="file for all numbers of the table"
    )


# pydantic lists the fields of the last base first.
class StepKeys(StepMeasuringKeys, StepWorkKeys):
    """All keys of `step`, checked and frozen."""


class KernelKeys(MeasuringKeys, WorkKeys):
    """All keys of `kernels`, checked and frozen."""


# Title in --help -> its keys.
STEP_GROUPS: dict[str, type[BaseModel]] = {
    "Work": StepWorkKeys,
    "Measuring": StepMeasuringKeys,
}
KERNEL_GROUPS: dict[str, type[BaseModel]] = {
    "Work": WorkKeys,
    "Measuring": MeasuringKeys,
}
