"""Keys of a run that say when a word has learned, and which of its rows are kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ti_flax.config.fields import Count, Number, Settings
from ti_flax.config.natures import TRAVELS

StopRule = Literal["none", "plateau", "dvar"]


class StoppingKeys(Settings):
    """When a word has learned, by its loss on a fixed set of examples."""

    stop: Annotated[StopRule, TRAVELS] = Field(
        "none",
        description="end the run before max_train_steps: plateau when the fixed loss "
        "falls no more, dvar when its variance has settled; for lr_scheduler constant",
    )
    dvar_window: Annotated[Count, TRAVELS] = Field(
        310,
        le=100_000,
        description="steps over which it must have settled, 310 in the paper",
    )
    dvar_eps: Annotated[Number, TRAVELS] = Field(
        0.15,
        gt=0,
        le=1,
        description="it has when its variance over them is less than this share of "
        "that over all steps, 0.15 in the paper",
    )
    plateau_patience: Annotated[Count, TRAVELS] = Field(
        100, le=10**6, description="steps that plateau waits for a lower fixed loss"
    )
    plateau_min_delta: Annotated[Number, TRAVELS] = Field(
        0.005, ge=0, lt=1, description="share by which it must be lower to count"
    )
    fixed_loss_steps: Annotated[Count, TRAVELS] = Field(
        5,
        le=100_000,
        description="steps between evaluations of the fixed loss, for stop and for "
        "keep best",
    )
    keep: Annotated[Literal["last", "best"], TRAVELS] = Field(
        "last",
        description="the vectors to write: those of the last step, or those of the "
        "least fixed loss",
    )

    @property
    def window(self) -> int | None:
        """How many of the last evaluations to keep; None: there are none."""
        if self.stop == "dvar":
            return self.dvar_window // self.fixed_loss_steps
        return 1 if self.stop == "plateau" or self.keep == "best" else None

    @model_validator(mode="after")
    def _window_has_a_variance(self) -> "StoppingKeys":
        if self.stop == "dvar" and self.dvar_window < 2 * self.fixed_loss_steps:
            raise ValueError(
                "expected dvar_window >= 2 * fixed_loss_steps, found "
                f"{self.dvar_window} and {self.fixed_loss_steps}; choose a longer "
                "window, or evaluate more often"
            )
        return self
