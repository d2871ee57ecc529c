"""What a single file's UNet predicts: noise, or v, and on which noise schedule.

Nothing in the weights of Stable Diffusion says it for certain. What programs leave in
and beside a file does, here in the order in which it is believed; the rule that
decided is told. The signs are those of ComfyUI, AUTOMATIC1111, kohya's scripts and
InvokeAI.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ti_flax.models.tensors import Tensor

EPSILON, V = "epsilon", "v_prediction"
# Empty tensors that say it by being there: ComfyUI's and A1111's.
_V_KEY, _ZERO_SNR_KEY = "v_pred", "ztsnr"
_NAMES = {
    "eps": EPSILON,
    "epsilon": EPSILON,
    "v": V,
    "v_prediction": V,
    "v-prediction": V,
}
_METADATA = ("modelspec.predict_key", "modelspec.prediction_type")
_ARCHITECTURE = "modelspec.architecture"
_ARCHITECTURES = {
    "stable-diffusion-v2-512": EPSILON,
    "stable-diffusion-v2-768-v": V,
}
# Steps of training that the published checkpoints of Stable Diffusion 2 state.
_GLOBAL_STEPS = {875000: EPSILON, 220000: EPSILON, 110000: V}
# The largest that this norm's biases spread in a UNet of 2.x that predicts noise.
_NORM = re.compile(
    r"up_blocks\.(\d{1,3})\.attentions\.(\d{1,3})\.transformer_blocks\.0\.norm1\.bias"
)
_LARGEST_SPREAD = 0.09
# Latents, the mask, and the latents of the masked picture.
_INPAINTING_CHANNELS = 9


class Prediction(NamedTuple):
    """`rule` says what decided."""

    prediction_type: str
    zero_terminal_snr: bool
    rule: str


class Signs(NamedTuple):
    """What the run's keys say, a file, and the one beside it.

    `norm` is the first norm's bias in the last transformer of the UNet, `beside` the
    content of the YAML file of the same name.
    """

    kind: str
    in_channels: int = 4
    keys: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = {}
    beside: Mapping[str, Any] | None = None
    global_step: int | None = None
    norm: Tensor | None = None
    said: str | None = None
    said_zero_terminal_snr: bool | None = None


def decide(signs: Signs) -> Prediction:
    """What the first rule with a sign says."""
    prediction_type, rule = next(_rules(signs))
    # Programs write the one key beside the other.
    zero_snr = prediction_type == V and _ZERO_SNR_KEY in signs.keys
    if signs.said_zero_terminal_snr is not None:
        zero_snr = signs.said_zero_terminal_snr
        rule += " and the run's key rescale_betas_zero_snr"
    elif zero_snr:
        rule += f" and the key {_ZERO_SNR_KEY} in the file"
    return Prediction(prediction_type, zero_snr, rule)


def _rules(signs: Signs) -> Iterator[tuple[str, str]]:
    if signs.said is not None:
        yield signs.said, "the run's key prediction_type"
    if _V_KEY in signs.keys:
        yield V, f"the key {_V_KEY} in the file"
    for name in _METADATA:
        said = _NAMES.get(signs.metadata.get(name, "").lower())
        if said:
            yield said, f"{name} in the file's metadata"
    architecture = signs.metadata.get(_ARCHITECTURE, "").lower()
    if architecture in _ARCHITECTURES:
        yield _ARCHITECTURES[architecture], f"{_ARCHITECTURE} in the file's metadata"
    if signs.beside is not None:
        yield _of_yaml(signs.beside), "the .yaml beside the file"
    if signs.kind == "sd2":
        yield from _of_sd2(signs)
    yield EPSILON, "nothing in or beside the file says otherwise"


def _of_yaml(content: Mapping[str, Any]) -> str:
    """Of the configuration of latent diffusion's code, or of its successor's."""
    model = _inside(content, "model", "params")
    scaling = _inside(model, "denoiser_config", "params", "scaling_config")
    says_v = model.get("parameterization") == "v"
    return V if says_v or str(scaling.get("target")).endswith(".VScaling") else EPSILON


def _inside(content: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        found = content.get(name)
        content = found if isinstance(found, Mapping) else {}
    return content


def _of_sd2(signs: Signs) -> Iterator[tuple[str, str]]:
    if signs.global_step in _GLOBAL_STEPS:
        rule = f"global_step {signs.global_step} of the file"
        yield _GLOBAL_STEPS[signs.global_step], rule
    if signs.in_channels == _INPAINTING_CHANNELS:
        yield EPSILON, "as the inpainting model of Stable Diffusion 2"
    if signs.norm is not None:
        spread = float(np.std(signs.norm.read().astype(np.float32)))
        said = V if spread > _LARGEST_SPREAD else EPSILON
        yield said, f"the spread {spread:.3f} of a norm's biases (above 0.09: v)"
    yield V, "as most models of Stable Diffusion 2.x"


def last_norm(unet: Iterable[Tensor]) -> Tensor | None:
    """`Signs.norm`, of the tensors of a UNet under diffusers' keys."""
    found = [(_NORM.fullmatch(tensor.key), tensor) for tensor in unet]
    norms = [(int(match[1]), int(match[2]), tensor) for match, tensor in found if match]
    return max(norms, key=lambda norm: norm[:2], default=(0, 0, None))[2]
