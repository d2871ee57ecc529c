"""What a single file predicts: each sign, and which of two is believed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ti_flax.models import prediction
from ti_flax.models.prediction import EPSILON, Signs, V
from ti_flax.models.tensors import Tensor

V_YAML = {"model": {"params": {"parameterization": "v", "linear_start": 0.00085}}}
EPS_YAML = {"model": {"target": "ldm", "params": {"linear_start": 0.00085}}}
SGM = "sgm.modules.diffusionmodules.denoiser_scaling."


def scaling(name: str) -> Mapping[str, Any]:
    config = {"params": {"scaling_config": {"target": SGM + name}}}
    return {"model": {"params": {"denoiser_config": config}}}


def spread(deviation: float, key: str = "norm") -> Tensor:
    """A norm's biases of exactly this standard deviation."""
    biases = np.tile(np.float32([-deviation, deviation]), 160)
    return Tensor(key, biases.shape, biases.dtype, lambda: biases)


def keys(*names: str) -> frozenset[str]:
    return frozenset({"model.diffusion_model.out.0.bias", *names})


CASES: list[tuple[Signs, str, bool, str]] = [
    (Signs("sd1"), EPSILON, False, "says otherwise"),
    (Signs("sdxl"), EPSILON, False, "says otherwise"),
    (Signs("sd2"), V, False, "most models"),
    # Empty tensors.
    (Signs("sdxl", keys=keys("v_pred")), V, False, "v_pred"),
    (Signs("sdxl", keys=keys("v_pred", "ztsnr")), V, True, "v_pred in the file and"),
    (Signs("sdxl", keys=keys("ztsnr")), EPSILON, False, "says otherwise"),
    (
        Signs("sdxl", keys=keys("ztsnr"), metadata={"modelspec.predict_key": "v"}),
        V,
        True,
        "predict_key in the file's metadata and the key ztsnr",
    ),
    # The run's own keys, before all.
    (
        Signs("sdxl", keys=keys("v_pred", "ztsnr"), said=EPSILON),
        EPSILON,
        False,
        "the run's key prediction_type",
    ),
    (Signs("sdxl", keys=keys("ztsnr"), said=V), V, True, "prediction_type and the key"),
    (Signs("sd1", said=V, said_zero_terminal_snr=True), V, True, "rescale_betas"),
    (
        Signs("sdxl", keys=keys("v_pred", "ztsnr"), said_zero_terminal_snr=False),
        V,
        False,
        "v_pred in the file and the run's key rescale_betas_zero_snr",
    ),
    (
        Signs("sdxl", keys=keys("v_pred"), said_zero_terminal_snr=True),
        V,
        True,
        "rescale_betas_zero_snr",
    ),
    (Signs("sd1", keys=keys("v_pred")), V, False, "v_pred"),
    (
        Signs("sdxl", keys=keys("x.v_pred", "v_pred.weight")),
        EPSILON,
        False,
        "says otherwise",
    ),
    # Metadata: ComfyUI's, kohya's.
    (Signs("sdxl", metadata={"modelspec.predict_key": "v"}), V, False, "predict_key"),
    (
        Signs("sdxl", metadata={"modelspec.prediction_type": "v"}),
        V,
        False,
        "prediction_type",
    ),
    (
        Signs("sdxl", metadata={"modelspec.prediction_type": "V_Prediction"}),
        V,
        False,
        "prediction_type",
    ),
    (
        Signs("sd2", metadata={"modelspec.predict_key": "epsilon"}),
        EPSILON,
        False,
        "predict_key",
    ),
    (
        Signs("sd2", metadata={"modelspec.architecture": "stable-diffusion-v2-512"}),
        EPSILON,
        False,
        "architecture",
    ),
    (
        Signs("sd2", metadata={"modelspec.architecture": "stable-diffusion-v2-768-v"}),
        V,
        False,
        "architecture",
    ),
    (
        Signs(
            "sdxl", metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"}
        ),
        EPSILON,
        False,
        "says otherwise",
    ),
    (
        Signs("sdxl", metadata={"modelspec.prediction_type": "x"}),
        EPSILON,
        False,
        "says otherwise",
    ),
    # The file beside it.
    (Signs("sd2", beside=V_YAML, norm=spread(0.01)), V, False, ".yaml"),
    (Signs("sd2", beside=EPS_YAML, norm=spread(0.2)), EPSILON, False, ".yaml"),
    (Signs("sd1", beside=V_YAML), V, False, ".yaml"),
    (Signs("sdxl", beside=scaling("VScaling")), V, False, ".yaml"),
    (Signs("sdxl", beside=scaling("EpsScaling")), EPSILON, False, ".yaml"),
    (Signs("sd1", beside={}), EPSILON, False, ".yaml"),
    (Signs("sd1", beside={"model": [1]}), EPSILON, False, ".yaml"),
    (Signs("sd1", beside={"model": {"params": None}}), EPSILON, False, ".yaml"),
    # Steps of training, of 2.x alone.
    (Signs("sd2", global_step=875000, norm=spread(0.2)), EPSILON, False, "875000"),
    (Signs("sd2", global_step=220000, norm=spread(0.2)), EPSILON, False, "220000"),
    (Signs("sd2", global_step=110000, norm=spread(0.0)), V, False, "110000"),
    (Signs("sd2", global_step=5, norm=spread(0.01)), EPSILON, False, "spread 0.010"),
    (Signs("sd1", global_step=110000), EPSILON, False, "says otherwise"),
    # The UNet's own numbers, of 2.x alone.
    (Signs("sd2", norm=spread(0.089)), EPSILON, False, "spread"),
    (Signs("sd2", norm=spread(0.091)), V, False, "spread"),
    (Signs("sdxl", norm=spread(0.2)), EPSILON, False, "says otherwise"),
    (Signs("sd2", in_channels=9, norm=spread(0.2)), EPSILON, False, "inpainting"),
    # Of two signs, the first.
    (
        Signs("sdxl", keys=keys("v_pred"), metadata={"modelspec.predict_key": "eps"}),
        V,
        False,
        "v_pred",
    ),
    (
        Signs("sd2", metadata={"modelspec.predict_key": "v"}, beside=EPS_YAML),
        V,
        False,
        "predict_key",
    ),
    (Signs("sd2", beside=EPS_YAML, global_step=110000), EPSILON, False, ".yaml"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[3])
def test_the_first_sign_decides(case: tuple[Signs, str, bool, str]) -> None:
    signs, prediction_type, zero_terminal_snr, rule = case
    decided = prediction.decide(signs)
    assert decided.prediction_type == prediction_type
    assert decided.zero_terminal_snr == zero_terminal_snr
    assert rule in decided.rule


def test_the_norm_is_the_last_transformers_first() -> None:
    places = ["up_blocks.1.attentions.2", "up_blocks.3.attentions.1", "mid_block"]
    places += ["up_blocks.3.attentions.0", "down_blocks.9.attentions.9", "up_blocks.x"]
    tensors = [
        spread(0.1, f"{place}.transformer_blocks.0.norm1.bias") for place in places
    ]
    tensors += [spread(0.1, "up_blocks.3.attentions.2.transformer_blocks.0.norm2.bias")]
    found = prediction.last_norm(tensors)
    assert found is not None and found.key.startswith("up_blocks.3.attentions.1.")
    assert prediction.last_norm([]) is None
