"""Formats with a fixed name for the rows of each text encoder, and none for the token.

kohya and InvokeAI call those of a single encoder `emb_params`, OneTrainer `emp_params`.
For SDXL all three write `clip_l` and `clip_g`, Replicate `text_encoders_0` and
`text_encoders_1`. The token is in metadata, or is the file's name.
"""

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from ti_flax.formats.checks import RawWord, Reading, shown
from ti_flax.formats.content import Content
from ti_flax.formats.metadata import to_texts, token_in
from ti_flax.formats.safetensors_file import BUNDLE_PREFIX
from ti_flax.pickles.refused import Refused
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import FIRST_ENCODER, SD2_WIDTH, Embedding

_log = logging.getLogger(__name__)

# The field with the rows of each text encoder.
_EMB_PARAMS = {FIRST_ENCODER: "emb_params"}
_EMP_PARAMS = {FIRST_ENCODER: "emp_params"}
_CLIP = {FIRST_ENCODER: "clip_l", "text_encoder_2": "clip_g"}
_REPLICATE = {FIRST_ENCODER: "text_encoders_0", "text_encoder_2": "text_encoders_1"}

_ARCHITECTURES = {
    "SDXL": "stable-diffusion-xl-v1-base",
    "Stable Diffusion 1.x": "stable-diffusion-v1",
}
_SPEC = "modelspec."


def find_kohya(content: Content) -> Reading | None:
    """kohya's safetensors name their ModelSpec; its .pt is a torch file."""
    spec = f"{_SPEC}sai_model_spec" in content.metadata
    if content.kind != "torch" and not spec:
        return None
    return _find(content, _EMB_PARAMS) or _find(content, _CLIP)


def find_plain(content: Content) -> Reading | None:
    return _find(content, _EMB_PARAMS)


def find_sdxl(content: Content) -> Reading | None:
    """Rows of both encoders, or `clip_l` alone, which is Stable Diffusion 1.x."""
    return _find(content, _CLIP)


def find_onetrainer(content: Content) -> Reading | None:
    return _find(content, _EMP_PARAMS)


def find_replicate(content: Content) -> Reading | None:
    return _find(content, _REPLICATE)


def _find(content: Content, fields: Mapping[str, str]) -> Reading | None:
    value = content.value
    if not isinstance(value, dict) or fields[FIRST_ENCODER] not in value:
        return None
    word = RawWord(token_in(content.metadata), _by_encoder(value, fields))
    return Reading([word], content.metadata)


def _by_encoder(
    found: Mapping[str, object], fields: Mapping[str, str]
) -> dict[str, object]:
    """The rows in a file's fields; `Refused` when it has those of other encoders."""
    _refuse_or_skip(set(found) - set(fields.values()))
    return {key: found[field] for key, field in fields.items() if field in found}


def _refuse_or_skip(names: Iterable[object]) -> None:
    """What lies beside the rows: OneTrainer's output vectors, or other encoders."""
    left_out = sorted(map(str, names))
    for name in left_out:
        if not name.endswith("_out"):
            raise Refused(
                f"has {shown(name)} beside CLIP's rows: it is of another family (t5 is "
                "of SD3 and Flux), expected Stable Diffusion 1.x, 2.x or SDXL"
            )
    if left_out:
        listed = shown(", ".join(left_out))
        _log.warning("%s is left out: only OneTrainer knows output vectors", listed)


def find_bundle(content: Content) -> Reading | None:
    """The embeddings in a OneTrainer LoRA: `bundle_emb.{token}.{encoder}`."""
    if not isinstance(content.value, dict):
        return None
    words: dict[str, dict[str, object]] = {}
    for key, tensor in content.value.items():
        if isinstance(key, str) and key.startswith(BUNDLE_PREFIX):
            # A token may have dots of its own, an encoder's name has none.
            token, _, encoder = key.removeprefix(BUNDLE_PREFIX).rpartition(".")
            words.setdefault(token, {})[encoder] = tensor
    if not words:
        return None
    found = [RawWord(token, _by_encoder(rows, _CLIP)) for token, rows in words.items()]
    return Reading(found, content.metadata)


def make_sdxl(embedding: Embedding) -> dict[str, np.ndarray]:
    if len(embedding.rows) == 1:
        raise UserError(
            f"{embedding.token} has rows for one text encoder ({embedding.family}): "
            "SDXL has two"
        )
    return _named(embedding, _CLIP)


def make_plain(embedding: Embedding) -> dict[str, np.ndarray]:
    return _named(embedding, _EMB_PARAMS if len(embedding.rows) == 1 else _CLIP)


def make_onetrainer(embedding: Embedding) -> dict[str, np.ndarray]:
    return _named(embedding, _EMP_PARAMS if len(embedding.rows) == 1 else _CLIP)


def make_bundle(embedding: Embedding) -> dict[str, np.ndarray]:
    return {
        f"{BUNDLE_PREFIX}{embedding.token}.{field}": rows
        for field, rows in _named(embedding, _CLIP).items()
    }


def make_replicate(embedding: Embedding) -> dict[str, np.ndarray]:
    return _named(embedding, _REPLICATE)


def _named(embedding: Embedding, fields: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {fields[encoder]: rows for encoder, rows in embedding.rows.items()}


def model_spec(embedding: Embedding) -> Mapping[str, str]:
    """ModelSpec 1.0.1, without the date: the same input gives the same bytes."""
    provenance = embedding.provenance
    prediction = provenance.get("prediction_type", "epsilon")
    architecture = _ARCHITECTURES.get(embedding.family)
    if embedding.widths[FIRST_ENCODER] == SD2_WIDTH:
        v_prediction = prediction == "v_prediction"
        architecture = f"stable-diffusion-v2-{'768-v' if v_prediction else '512'}"
    spec = {
        "sai_model_spec": "1.0.1",
        # The widths of other models' encoders have no entry in ModelSpec's list.
        "architecture": f"{architecture or 'stable-diffusion'}/textual-inversion",
        "implementation": "https://github.com/huggingface/diffusers",
        "title": embedding.token,
        "trigger_phrase": embedding.token,
        "prediction_type": "v" if prediction == "v_prediction" else prediction,
    }
    if resolution := provenance.get("resolution"):
        spec["resolution"] = f"{resolution}x{resolution}"
    return {**to_texts(embedding), **{_SPEC + key: text for key, text in spec.items()}}
