"""Keys for what a model's files do not say, or do not hold."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ti_flax.config.fields import OptionalNameOrPath, Settings
from ti_flax.config.natures import FREE, TRAVELS

_V = "v_prediction"


class CheckpointKeys(Settings):
    """Parts from elsewhere, and what the model was trained to predict."""

    vae: Annotated[OptionalNameOrPath, FREE] = Field(
        None,
        description="folder, Hub id or file of a VAE in place of the model's, or where "
        "it has none",
    )
    text_encoder: Annotated[OptionalNameOrPath, FREE] = Field(
        None,
        description="folder, Hub id or file of the text encoder in place of the "
        "model's, or where it has none; of a whole SDXL model, both are taken",
    )
    text_encoder_2: Annotated[OptionalNameOrPath, FREE] = Field(
        None, description="folder, Hub id or file of SDXL's second text encoder alone"
    )
    ema: Annotated[bool, TRAVELS] = Field(
        False,
        description="of a single file with both, take the UNet's averaged weights "
        "(EMA) in place of the last",
    )
    prediction_type: Annotated[Literal["epsilon", "v_prediction"] | None, TRAVELS] = (
        Field(
            None,
            description="what the UNet was trained to predict; none: what the model's "
            "files say, told at the start",
        )
    )
    rescale_betas_zero_snr: Annotated[bool | None, TRAVELS] = Field(
        None,
        description="whether the UNet was trained with zero terminal SNR; none: what "
        "the model's files say",
    )
    # Never kept: it becomes prediction_type, so that either name resumes the other's.
    v_parameterization: Annotated[bool | None, FREE] = Field(
        None, description="kohya's name for prediction_type v_prediction"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_kohyas_name(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("v_parameterization") is None:
            return given
        try:
            says_v = TypeAdapter(bool).validate_python(given["v_parameterization"])
        except ValidationError:  # for the field's own check
            return given
        said = _V if says_v else "epsilon"
        other = given.get("prediction_type")
        if other is not None and other != said:
            raise ValueError(
                "expected prediction_type or v_parameterization, found both "
                f"({other!r}, {str(says_v).lower()}); remove one"
            )
        return {**given, "prediction_type": said, "v_parameterization": None}
