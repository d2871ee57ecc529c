"""Keys of a run that say when a word has learned, and which of its rows are kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ti_flax.config.fields import Count, Number, Settings
from ti_flax.config.natures import TRAVELS


class StoppingKeys(Settings):
    """When a word has learned, by its loss on a fixed set of examples."""

    stop: Annotated[Literal["none", "dvar"], TRAVELS] = Field(
        "none",
        description="dvar ends the run when the fixed loss has settled, before "
        "max_train_steps; for lr_scheduler constant",
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
    stop_cooldown: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        le=10,
        description="share of the steps until then that are taken after it, while the "
        "learning rate falls to 0; 0 in the paper",
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
    def looks_at_fixed_loss(self) -> bool:
        """Whether the fixed loss is evaluated between validations."""
        return self.stop != "none" or self.keep == "best"

    @property
    def settled_share(self) -> float:
        """`dvar_eps`; 0, which no variance is below, where nothing is stopped."""
        return self.dvar_eps if self.stop == "dvar" else 0.0

    @property
    def window(self) -> int:
        """`dvar_window` in evaluations; 1 where nothing is stopped by them."""
        return self.dvar_window // self.fixed_loss_steps if self.stop == "dvar" else 1

    @model_validator(mode="after")
    def _window_has_a_variance(self) -> "StoppingKeys":
        if self.stop == "dvar" and self.window < 2:
            raise ValueError(
                "expected dvar_window >= 2 * fixed_loss_steps, found "
                f"{self.dvar_window} and {self.fixed_loss_steps}; choose a longer "
                "window, or evaluate more often"
            )
        return self
