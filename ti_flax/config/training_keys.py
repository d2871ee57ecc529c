"""Keys of a run that say how it trains, how that is computed, and where it writes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ti_flax.config.fields import (
    LARGEST_BATCH,
    MOST_STEPS,
    AttentionName,
    Beta,
    Count,
    FilePath,
    Integer,
    LrScheduler,
    Number,
    Optimizer,
    OptionalInteger,
    OptionalLimit,
    OptionalNameOrPath,
    OptionalNumber,
    Precision,
    Settings,
)
from ti_flax.config.natures import FREE, NOTED, TRAVELS
from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.config.stopping_keys import StoppingKeys

HoldRowNorm = Literal["clip", "median", "initializer", "decay"]
# With which a vector's length never changes.
FIXED_LENGTHS = ("initializer", "median")


class OptimizerKeys(Settings):
    """How the vectors are learned."""

    seed: Annotated[Integer, TRAVELS] = Field(
        42, ge=0, lt=2**32, description="start of every random number of the run"
    )
    train_batch_size: Annotated[Count, NOTED] = Field(
        4,
        le=LARGEST_BATCH,
        description="examples in a micro-batch over ALL devices together (diffusers "
        "counts them per device)",
    )
    gradient_accumulation_steps: Annotated[Count, NOTED] = Field(
        1, le=LARGEST_BATCH, description="micro-batches in a step of the optimizer"
    )
    max_train_steps: Annotated[Count, NOTED] = Field(
        3000, le=MOST_STEPS, description="length of the run in steps of the optimizer"
    )
    learning_rate: Annotated[Number, TRAVELS] = Field(
        2e-3, gt=0, le=1e6, description="peak of the learning rate, before scale_lr"
    )
    learning_rate_te1: Annotated[OptionalNumber, TRAVELS] = Field(
        None,
        ge=0,
        le=1e6,
        description="learning_rate of the vectors of the first text encoder; 0 keeps "
        "them where they start; none: learning_rate",
    )
    learning_rate_te2: Annotated[OptionalNumber, TRAVELS] = Field(
        None,
        ge=0,
        le=1e6,
        description="the same of the second text encoder, which SDXL has",
    )
    scale_lr: Annotated[bool, TRAVELS] = Field(
        False,
        description="multiply learning_rate by gradient_accumulation_steps and by "
        "train_batch_size",
    )
    lr_scheduler: Annotated[LrScheduler, TRAVELS] = Field(
        "constant", description="course of the learning rate over the run"
    )
    lr_warmup_steps: Annotated[Integer, TRAVELS] = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="steps of the optimizer over which the learning rate rises from 0; "
        "no effect with lr_scheduler constant",
    )
    lr_num_cycles: Annotated[Count, TRAVELS] = Field(
        1, le=10**6, description="cycles of lr_scheduler cosine_with_restarts"
    )
    lr_power: Annotated[Number, TRAVELS] = Field(
        1.0, gt=0, le=100, description="exponent of lr_scheduler polynomial"
    )
    lr_decay_steps: Annotated[OptionalInteger, TRAVELS] = Field(
        None,
        ge=0,
        le=MOST_STEPS,
        description="last steps of the run, over which the learning rate of "
        "lr_scheduler warmup_stable_decay falls to 0; none: a fifth of max_train_steps",
    )
    optimizer: Annotated[Optimizer, TRAVELS] = Field(
        "adamw",
        description="adamw, or directional: steps of learning_rate radians on the "
        "sphere of the length that hold_row_norm median or initializer keeps (DTI); "
        "adam_* mean nothing there",
    )
    directional_prior: Annotated[Number, TRAVELS] = Field(
        1e-4,
        ge=0,
        le=1e6,
        description="pull of optimizer directional to the direction of the start, 1e-4 "
        "in the paper",
    )
    adam_beta1: Annotated[Beta, TRAVELS] = Field(
        0.9, description="decay of Adam's mean gradient, per step"
    )
    adam_beta2: Annotated[Beta, TRAVELS] = Field(
        0.999, description="decay of Adam's mean squared gradient, per step"
    )
    adam_epsilon: Annotated[Number, TRAVELS] = Field(
        1e-8, gt=0, le=1, description="added to the denominator of Adam's update"
    )
    adam_weight_decay: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        le=1e6,
        description="share of the vectors taken off per step, times the learning rate",
    )
    max_grad_norm: Annotated[OptionalLimit, TRAVELS] = Field(
        None,
        gt=0,
        le=1e9,
        description="L2 norm that gradients are clipped to; none, or 0: no limit",
    )
    hold_row_norm: Annotated[HoldRowNorm | None, TRAVELS] = Field(
        None,
        description="keep the vectors as long as a word's: clip them to the 99th "
        "percentile of the vocabulary, hold them at its median or at the length that "
        "each starts with (initializer), or let them decay to where they started",
    )
    row_decay: Annotated[Number, TRAVELS] = Field(
        1e-2,
        ge=0,
        le=1e6,
        description="with hold_row_norm decay, the share of the way back per step, "
        "times the learning rate",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "OptimizerKeys":
        if self.lr_warmup_steps > self.max_train_steps:
            raise ValueError(
                "expected lr_warmup_steps <= max_train_steps, found "
                f"{self.lr_warmup_steps} > {self.max_train_steps}"
            )
        return self

    @model_validator(mode="after")
    def _decay_fits(self) -> "OptimizerKeys":
        wanted = self.lr_warmup_steps + self.decay_steps
        if wanted > self.max_train_steps:
            raise ValueError(
                "expected lr_warmup_steps + lr_decay_steps <= max_train_steps, found "
                f"{self.lr_warmup_steps} + {self.decay_steps} > {self.max_train_steps}"
            )
        return self

    @model_validator(mode="after")
    def _sphere_has_a_length(self) -> "OptimizerKeys":
        held = self.hold_row_norm
        if self.optimizer == "directional" and held not in FIXED_LENGTHS:
            raise ValueError(
                "expected hold_row_norm initializer or median with optimizer "
                f"directional, found {held or 'none'}; it learns the direction of "
                "vectors whose length is fixed"
            )
        return self

    @property
    def decay_steps(self) -> int:
        """Steps over which the rate of `warmup_stable_decay` falls."""
        if self.lr_scheduler != "warmup_stable_decay":
            return 0
        if self.lr_decay_steps is None:
            return self.max_train_steps // 5
        return self.lr_decay_steps

    @property
    def examples_per_step(self) -> int:
        """Examples in one step of the optimizer, over all devices and micro-batches."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate after warmup, `scale_lr` applied."""
        return self.learning_rate * (self.examples_per_step if self.scale_lr else 1)


class ComputeKeys(Settings):
    """How it is computed."""

    mixed_precision: Annotated[Precision, TRAVELS] = "auto"
    attention: Annotated[AttentionName, FREE] = "auto"
    gradient_checkpointing: Annotated[bool | None, FREE] = Field(
        None,
        description="compute the UNet's blocks a second time in the backward pass "
        "instead of keeping what is inside; none: only where the device's memory is "
        "short",
    )
    compilation_cache_dir: Annotated[OptionalNameOrPath, FREE] = Field(
        "~/.cache/ti_flax",
        validate_default=True,
        description="folder, or gs:// address, where compiled programs are kept for "
        "the next run; none keeps none",
    )
    profile_startup: Annotated[bool, FREE] = Field(
        False, description="print where the time goes until the first step has run"
    )


# pydantic lists the fields of the last base first.
class TrainingKeys(ComputeKeys, StoppingKeys, ObjectiveKeys, OptimizerKeys):
    """All that a step is made from."""

    @model_validator(mode="after")
    def _may_stop(self) -> "TrainingKeys":
        keys = {"dvar": "dvar_window", "plateau": "plateau_patience"}
        key = keys.get(self.stop)
        if key is not None and getattr(self, key) > self.max_train_steps:
            raise ValueError(
                f"expected {key} <= max_train_steps, found {getattr(self, key)} > "
                f"{self.max_train_steps}; the run would never be stopped: train "
                "longer, or leave stop out"
            )
        return self


class OutputKeys(Settings):
    """Where the run writes, and from where it resumes."""

    output_dir: Annotated[FilePath, FREE] = Field(
        Path("text-inversion-model"), description="folder that the run writes"
    )
    overwrite_output_dir: Annotated[bool, FREE] = Field(
        False, description="allow an output_dir that an earlier run has used"
    )
    checkpointing_steps: Annotated[Count, FREE] = Field(
        500,
        le=MOST_STEPS,
        description="steps between checkpoints; each writes learned_embeds.* as well",
    )
    checkpoints_total_limit: Annotated[OptionalInteger, FREE] = Field(
        None,
        ge=1,
        le=10**6,
        description="checkpoints that are kept, the newest; none: all",
    )
    checkpoint_dir: Annotated[OptionalNameOrPath, FREE] = Field(
        None,
        description="folder or bucket (gs://...) of the checkpoints; none: "
        "checkpoints in output_dir",
    )
    resume_from_checkpoint: Annotated[OptionalNameOrPath, FREE] = Field(
        None,
        description="resume from `latest` of this run, or start it where there is "
        "none; or from the folder of a checkpoint",
    )
