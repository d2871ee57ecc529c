"""A model in one file: .safetensors or .ckpt, as the web has them.

A value of `sources.Source`. What the file holds is known by its tensors' keys and
shapes, never by its name; what it does not hold, its settings and tokenizers, is that
of the published models and comes from the package.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.models import (
    bert_tokenizer,
    clip_tokenizer,
    prediction,
    single_file_configs,
    single_file_contents,
    single_file_keys,
    single_file_refused,
    weight_files,
    written_weights,
)
from ti_flax.models.single_file_contents import Contents
from ti_flax.models.tensors import Tensor
from ti_flax.models.unet_config import REFINER
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, listed
from ti_flax.runtime.regular_files import sha256

Tensors = tuple[Tensor, ...]

NAMES = {
    "ldm": "latent diffusion with BERT",
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
}
TEXT_ENCODERS = {
    "ldm": ("text_encoder",),
    "sd1": ("text_encoder",),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
}
_UNET = "model.diffusion_model."
_UNET_SIGN = "input_blocks.0.0.weight"
_VAES = ("first_stage_model.", "vae.", "")
_VAE_SIGN = "decoder.conv_in.weight"
# Where a text encoder's keys begin, by how its code names them.
_CLIP = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": (),
}
_OPEN_CLIP = {
    "text_encoder": ("cond_stage_model.model.", "conditioner.embedders.0.model."),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
_CLIP_SIGNS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
)
_OPEN_CLIP_SIGN = "token_embedding.weight"
_BERT, _BERT_SIGN = "cond_stage_model.transformer.", "token_emb.weight"
# Stable Diffusion 2 conditions on the last layer but one, with the final norm.
_LAST_LAYER_OF_SD2 = 23
_PAD = {
    ("sd2", "tokenizer"): "!",
    ("sdxl", "tokenizer_2"): "!",
}
_SAMPLE_SIZE_OF_SD2 = {prediction.EPSILON: 64, prediction.V: 96}
_SUGGESTED_VAE = {
    "ldm": "stabilityai/sd-vae-ft-mse",
    "sd1": "stabilityai/sd-vae-ft-mse",
    "sd2": "stabilityai/sd-vae-ft-mse",
    "sdxl": "madebyollin/sdxl-vae-fp16-fix",
}


class SingleFile(NamedTuple):
    """A file's networks; `kind` is a key of `NAMES`.

    `parts` has the tensors of each network that is there, under diffusers' keys, and
    `prediction` what its UNet predicts.
    """

    contents: Contents
    kind: str
    parts: Mapping[str, Tensors]
    prediction: prediction.Prediction

    @property
    def path(self) -> Path:
        return self.contents.path

    def config(self, part: str) -> Mapping[str, Any]:
        """The settings of a part, as the published model of this shape has them.

        Raises `UserError` where the file has no such part, or a damaged one.
        """
        published = single_file_configs.PUBLISHED[self.kind]
        if part == "model_index":
            return published.get(part, {})
        own = single_file_configs.playground(self.contents.tensors)
        if part == "scheduler":
            return {**own.get(part, published[part]), **self._noise()}
        if part not in self.parts:
            raise UserError(self._missing(part))
        config = part_config(self.path, part, self.parts[part], self.kind)
        if part == "unet" and self.kind == "sd2":
            size = _SAMPLE_SIZE_OF_SD2[self.prediction.prediction_type]
            config["sample_size"] = size
        return {**config, **own.get(part, {})}

    def tensors(self, part: str) -> Iterator[Tensor]:
        yield from self.parts[part]

    def tokenizer(self, name: str) -> Path:
        """The folder of a tokenizer, which no such file has.

        Raises `UserError` where BERT's vocabulary, which the package has not, is
        neither beside the file nor to be had from the Hub.
        """
        if self.kind == "ldm":
            return bert_tokenizer.find(self.path)
        return clip_tokenizer.folder(_PAD.get((self.kind, name), clip_tokenizer.END))

    def copy_part(self, part: str, folder: Path) -> None:
        """Of the numbers' own type; float8 becomes float16."""
        folder.mkdir(exist_ok=True)
        atomic.write_json(folder / "config.json", self.config(part))
        name = f"{weight_files.STEMS[part][0]}.safetensors"
        written_weights.write(folder / name, self.tensors(part))

    def fingerprint(self, parts: Iterable[str]) -> str:
        """SHA-256 of the file, by which Civitai and others know it.

        Where another file beside it says how it was trained, of both their sums.
        """
        del parts
        sums = [sha256(self.path).hex()]
        beside = single_file_contents.beside(self.path)
        if os.path.exists(beside):
            sums.append(sha256(beside).hex())
            return hashlib.sha256("".join(sums).encode()).hexdigest()
        return sums[0]

    def misfit(self, part: str, reasons: str) -> str:
        return (
            f"{self.path}: the {part}'s tensors are not those of one model "
            f"({reasons}); the file is damaged or was put together wrongly: get it "
            "again"
        )

    def _noise(self) -> dict[str, Any]:
        noise: dict[str, Any] = {"prediction_type": self.prediction.prediction_type}
        if self.prediction.zero_terminal_snr:
            # Pictures start where training does, in pure noise (Lin et al. 2023).
            noise |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return noise

    def _missing(self, part: str) -> str:
        suggested = _SUGGESTED_VAE[self.kind]
        if part != "vae":
            suggested = f"a whole model of {NAMES[self.kind]}"
        key = "vae" if part == "vae" else "text_encoder"
        return (
            f"{self.path} ({NAMES[self.kind]}) has no {part}; set {key} to a folder, "
            f"a Hub id or a file that has it, such as {suggested}"
        )


def open_file(
    path: Path,
    ema: bool = False,
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
) -> SingleFile:
    """Opens a model's file; of its tensors, only those that tell a rule are read.

    With `ema` the UNet's averaged weights are its weights. What is not None is
    believed before the file.

    Raises:
        UserError: it is no model, one that is not supported, or has no averages.
    """
    contents = single_file_contents.read(path)
    unet = contents.under(_UNET)
    if _UNET_SIGN not in unet and _UNET_SIGN in contents.tensors:
        unet = dict(contents.tensors)
    keys = contents.tensors.keys()
    single_file_refused.check(path, keys, _UNET_SIGN in unet)
    if ema:
        unet = single_file_contents.averaged(contents, unet)
    parts = {"unet": tuple(single_file_keys.unet(unet))}
    shapes = single_file_configs.Shapes(str(path), "unet", parts["unet"])
    kind = single_file_configs.kind_of(shapes)
    if f"{_BERT}{_BERT_SIGN}" in keys:
        kind = "ldm"
    _refuse_refiner(contents, kind)
    for part in (*TEXT_ENCODERS[kind], "vae"):
        found = find_part(contents, part, kind, alone=False)
        if found is not None:
            parts[part] = found
    decided = prediction.decide(
        prediction.Signs(
            kind,
            shapes.size("conv_in.weight", 1),
            frozenset(keys),
            contents.metadata,
            single_file_contents.read_beside(path),
            contents.global_step,
            prediction.last_norm(parts["unet"]),
            prediction_type,
            zero_terminal_snr,
        )
    )
    return SingleFile(contents, kind, parts, decided)


def open_parts(
    path: Path, parts: Iterable[str], kind: str, required: str
) -> SingleFile:
    """The parts of a file that has them for a model of this kind; its UNet is not read.

    The file may be that of one network alone.

    Raises:
        UserError: the part `required` is not there.
    """
    contents = single_file_contents.read(path)
    found = {part: find_part(contents, part, kind, alone=True) for part in parts}
    if found[required] is None:
        told = listed(contents.tensors)
        raise UserError(
            f"{required}: {path} has no {required} of {NAMES[kind]}, its tensors are "
            f"{told or 'none'}; give a file that has it"
        )
    there = {part: tensors for part, tensors in found.items() if tensors is not None}
    unknown = prediction.Prediction(prediction.EPSILON, False, "nothing")
    return SingleFile(contents, kind, there, unknown)


def find_part(contents: Contents, part: str, kind: str, alone: bool) -> Tensors | None:
    """The VAE or a text encoder of a model of this kind, under diffusers' keys.

    `alone`: the file may hold nothing else, its keys without a prefix.
    """
    if part == "vae":
        found = _under(contents, _VAES if alone else _VAES[:1], (_VAE_SIGN,))
        return None if found is None else tuple(single_file_keys.vae(found))
    bare = ("",) if alone else ()
    if kind == "ldm":
        found = _under(contents, (_BERT, *bare), (_BERT_SIGN,))
        return None if found is None else tuple(single_file_keys.ldm_bert(found))
    projected = part == "text_encoder_2"
    found = _under(contents, (*_CLIP[part], *bare), _CLIP_SIGNS)
    if found is not None:
        return tuple(single_file_keys.clip(found, projected))
    found = _under(contents, (*_OPEN_CLIP[part], *bare), (_OPEN_CLIP_SIGN,))
    if found is None:
        return None
    unused = _LAST_LAYER_OF_SD2 if kind == "sd2" else None
    return tuple(single_file_keys.open_clip(found, projected, unused))


def part_config(path: Path, part: str, tensors: Tensors, kind: str) -> dict[str, Any]:
    """The settings of a network, by its shapes; `UserError` where they are damaged."""
    shapes = single_file_configs.Shapes(str(path), part, tensors)
    make: Mapping[str, Callable] = {
        "unet": single_file_configs.unet,
        "vae": single_file_configs.vae,
    }
    if part in make:
        return make[part](shapes, kind)
    return single_file_configs.text_encoder(shapes, kind, part)


def _under(
    contents: Contents, prefixes: Iterable[str], signs: Iterable[str]
) -> dict[str, Tensor] | None:
    """The tensors under the first prefix with one of the signs."""
    for prefix in prefixes:
        if any(f"{prefix}{sign}" in contents.tensors for sign in signs):
            return contents.under(prefix)
    return None


def _refuse_refiner(contents: Contents, kind: str) -> None:
    single = _under(contents, _OPEN_CLIP["text_encoder"][1:], (_OPEN_CLIP_SIGN,))
    both = _under(contents, _OPEN_CLIP["text_encoder_2"], (_OPEN_CLIP_SIGN,))
    if kind == "sdxl" and single is not None and both is None:
        raise UserError(f"{contents.path} is {REFINER}")
