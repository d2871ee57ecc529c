"""Keys of the loss, of the noise, and of the timesteps that are drawn."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ti_flax.config.fields import (
    MOST_TIMESTEPS,
    Integer,
    Number,
    OptionalInteger,
    OptionalNumber,
    Settings,
)
from ti_flax.config.natures import FREE, TRAVELS

_LARGEST_GAMMA = 1e6
_Gamma = Annotated[Number, Field(gt=0, le=_LARGEST_GAMMA)]


class ObjectiveKeys(Settings):
    """What an example's loss is, and how its timestep and its noise are drawn."""

    snr_gamma: Annotated[OptionalNumber, TRAVELS] = Field(
        None,
        gt=0,
        le=_LARGEST_GAMMA,
        description="min-SNR weights of the loss, 5 in the paper; none: every timestep "
        "counts alike",
    )
    # Never kept: it becomes snr_gamma, so that either name resumes the other's.
    min_snr_gamma: Annotated[OptionalNumber, FREE] = Field(
        None, gt=0, le=_LARGEST_GAMMA, description="kohya's name for snr_gamma"
    )
    debiased_estimation_loss: Annotated[bool, TRAVELS] = Field(
        False, description="weigh the loss by 1 / sqrt(SNR), for v by 1 / (SNR + 1)"
    )
    scale_v_pred_loss_like_noise_pred: Annotated[bool, TRAVELS] = Field(
        False,
        description="weigh the loss of v by SNR / (SNR + 1), as that of noise is; only "
        "for a model that predicts v",
    )
    loss_type: Annotated[Literal["l2", "huber", "smooth_l1"], TRAVELS] = Field(
        "l2",
        description="squared error, or one that large errors enter linearly; huber and "
        "smooth_l1 are kohya's",
    )
    huber_schedule: Annotated[Literal["constant", "exponential", "snr"], TRAVELS] = (
        Field(
            "snr",
            description="course over the timesteps of the threshold between small and "
            "large errors, with loss_type huber or smooth_l1",
        )
    )
    huber_c: Annotated[Number, TRAVELS] = Field(
        0.1, ge=1e-6, le=1000, description="that threshold, where noise is most"
    )
    noise_offset: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        le=10,
        description="noise on the mean of each channel, in standard deviations; 0.05 "
        "to 0.1 for very dark and very bright pictures",
    )
    multires_noise_iterations: Annotated[Integer, TRAVELS] = Field(
        0,
        ge=0,
        le=100,
        description="add noise of so many grids, each coarser than the one before; 6 "
        "to 10; 0: none",
    )
    multires_noise_discount: Annotated[Number, TRAVELS] = Field(
        0.3, ge=0, le=1, description="strength of each of these grids, of the last one"
    )
    ip_noise_gamma: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        le=10,
        description="more noise on the input, that the target does not have; 0.1 in "
        "the paper",
    )
    min_timestep: Annotated[Integer, TRAVELS] = Field(
        0, ge=0, lt=MOST_TIMESTEPS, description="first timestep that is drawn"
    )
    max_timestep: Annotated[OptionalInteger, TRAVELS] = Field(
        None,
        ge=1,
        le=MOST_TIMESTEPS,
        description="first timestep that is not; none: the model's number of them",
    )
    stratified_timesteps: Annotated[bool, TRAVELS] = Field(
        False,
        description="spread the timesteps of a step evenly over its examples, "
        "micro-batches included, instead of drawing each for itself",
    )
    timestep_bias_strategy: Annotated[
        Literal["none", "earlier", "later", "range"], TRAVELS
    ] = Field(
        "none",
        description="timesteps that are drawn timestep_bias_multiplier times as often: "
        "those with the least noise, with the most, or a range",
    )
    timestep_bias_multiplier: Annotated[Number, TRAVELS] = Field(
        1.0, gt=0, le=1e6, description="how many times as often"
    )
    timestep_bias_begin: Annotated[Integer, TRAVELS] = Field(
        0, ge=0, lt=MOST_TIMESTEPS, description="first timestep of the range"
    )
    timestep_bias_end: Annotated[OptionalInteger, TRAVELS] = Field(
        None,
        ge=1,
        le=MOST_TIMESTEPS,
        description="first timestep after it; none: the model's number of timesteps",
    )
    timestep_bias_portion: Annotated[Number, TRAVELS] = Field(
        0.25,
        gt=0,
        le=1,
        description="share of the model's timesteps that earlier and later mean",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_kohyas_gamma(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("min_snr_gamma") is None:
            return given
        read = TypeAdapter(_Gamma).validate_python
        other = given.get("snr_gamma")
        try:
            said = read(given["min_snr_gamma"])
            other = None if other is None else read(other)
        except ValidationError:  # for the fields' own checks
            return given
        if other is not None and other != said:
            raise ValueError(
                "expected snr_gamma or min_snr_gamma, which is kohya's name for it, "
                f"found both ({other:g}, {said:g}); remove one"
            )
        return {**given, "snr_gamma": said, "min_snr_gamma": None}

    @model_validator(mode="after")
    def _one_weighting(self) -> "ObjectiveKeys":
        if self.snr_gamma is not None and self.debiased_estimation_loss:
            raise ValueError(
                "expected snr_gamma or debiased_estimation_loss, found both "
                f"({self.snr_gamma:g}, true); each says what a timestep counts, "
                "remove one"
            )
        return self

    @model_validator(mode="after")
    def _some_timesteps(self) -> "ObjectiveKeys":
        first, end = self.min_timestep, self.max_timestep
        if end is not None and first >= end:
            raise ValueError(
                f"expected min_timestep < max_timestep, found {first} and {end}; "
                "max_timestep is the first that is not drawn"
            )
        first, end = self.timestep_bias_begin, self.timestep_bias_end
        if self.timestep_bias_strategy == "range" and end is not None and first >= end:
            raise ValueError(
                "expected timestep_bias_begin < timestep_bias_end, found "
                f"{first} and {end}; the end is the first after the range"
            )
        return self
