"""Says what a model in one file is."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ti_flax.formats.checks import shown
from ti_flax.models import single_file, single_file_contents
from ti_flax.models.single_file import SingleFile
from ti_flax.models.tensors import Tensor
from ti_flax.models.unet_config import UNetConfig
from ti_flax.runtime.regular_files import open_regular

_MAX_FACTS = 200
# As long as a header may be, with its length before it.
_HEADER_BYTES = 8 * 2**20 + 8
_SUFFIXES = (".ckpt", ".gguf")
_GGUF = b"GGUF"
_KEYS = (b'"model.diffusion_model.', b'"input_blocks.0.0.weight"')
_MEBI, _GIBI = 2**20, 2**30
# By the transformer blocks of the middle (None: it has none) and of the way down.
_RELATIVES = {
    (10, ((0, 0), (2, 2), (10, 10))): "SDXL's base",
    (0, ((0, 0), (2, 2), (4, 4))): "SSD-1B",
    (0, ((0, 0), (1, 1), (2, 2))): "Segmind-Vega",
    (None, ((0,), (2,), (5,))): "KOALA-700M",
    (6, ((0,), (2,), (6,))): "KOALA-1B",
}


def is_model(path: Path) -> bool:
    """Whether a file's keys, its first bytes or its name are those of a model."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    named = path.suffix.lower() in _SUFFIXES
    return named or head.startswith(_GGUF) or any(key in head for key in _KEYS)


def describe(path: Path) -> list[str]:
    """Family, parts, prediction type and the rule, EMA, metadata, in `fact: value`.

    Raises:
        UserError: it is no model, or one that is not supported; in one line.
    """
    opened = single_file.open_file(path)
    unet = opened.config("unet")
    decided = opened.prediction
    lines = [
        f"file: {path}",
        f"size: {_size(path.stat().st_size)}",
        f"model: {single_file.NAMES[opened.kind]}{_relative(opened.kind, unet)}",
        *_parts(opened),
        f"unet's input: {unet['in_channels']} channels{_inpainting(unet)}, context of "
        f"width {unet['cross_attention_dim']}",
        f"prediction_type: {decided.prediction_type} ({decided.rule})",
        f"zero terminal SNR: {_yes(decided.zero_terminal_snr)}",
        f"EMA: {_averages(opened)}",
    ]
    facts: dict[str, object] = dict(opened.contents.metadata)
    if opened.contents.global_step is not None:
        facts["global_step"] = opened.contents.global_step
    return lines + fact_lines(facts)


def fact_lines(facts: Mapping[str, object]) -> list[str]:
    """A stranger's facts in `fact: value`, the first of them."""
    lines = [
        f"{shown(key)[1:-1]}: {shown(value)[1:-1]}"
        for key, value in list(facts.items())[:_MAX_FACTS]
    ]
    if len(facts) > _MAX_FACTS:
        lines.append(f"and {len(facts) - _MAX_FACTS} more")
    return lines


def _parts(opened: SingleFile) -> Iterator[str]:
    for part in ("unet", *single_file.TEXT_ENCODERS[opened.kind], "vae"):
        if part in opened.parts:
            yield f"{part}: {_numbers(opened.parts[part])}"
        else:
            key = "vae" if part == "vae" else "text_encoder"
            yield f"{part}: none; set {key} to one"


def _numbers(tensors: Iterable[Tensor]) -> str:
    """How many, and of which types."""
    counted: Counter[str] = Counter()
    for tensor in tensors:
        counted[str(tensor.dtype)] += math.prod(tensor.shape)
    millions = sum(counted.values()) / 1e6
    types = " and ".join(name for name, _ in counted.most_common())
    return f"{millions:.2f} M of {types}"


def _size(length: int) -> str:
    if length < _GIBI:
        return f"{length / _MEBI:.1f} MiB"
    return f"{length / _GIBI:.2f} GiB"


def _relative(kind: str, unet: Mapping[str, Any]) -> str:
    if kind != "sdxl":
        return ""
    config = UNetConfig.from_json(unet)
    named = _RELATIVES.get((config.mid_depth, config.down_depths))
    return f", in the shape of {named}" if named else ", of a depth of its own"


def _inpainting(unet: Mapping[str, Any]) -> str:
    return " (inpainting)" if unet["in_channels"] == 9 else ""


def _averages(opened: SingleFile) -> str:
    if single_file_contents.has_averages(opened.contents):
        return "in the file, not used; ema true takes it"
    return "none"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
