"""The one seam: what tells one family of base models from another.

`step/`, `training/`, `checkpoints/`, `generation/` and `reports/` know text encoders by
name only and never ask which family they serve. A family is a value of `Family`, made
by a module of its own, such as `models.stable_diffusion`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ti_flax.diffusion.edm import Process
from ti_flax.models.torch_params import Params
from ti_flax.runtime.errors import UserError

# What the denoiser is told besides x_t and the time, as its further arguments; each
# array has the examples first.
Conditioning = tuple[Array | np.ndarray, ...]
# (outputs of the text encoders by name, sizes [B, 6]) to what the denoiser is told.
Condition = Callable[[Mapping[str, Any], Int[Array, "B 6"]], Conditioning]


class TextEncoder(NamedTuple):
    """A text encoder: `name` is the key of its rows and of its weights.

    `module` maps (ids [B, L], rows [B, K, D]) to what the family's `condition` reads;
    id V + k is row k. `tokenizer` is the folder of its tokenizer, `pieces` its kind.
    `embedding` is the path to the module of the vocabulary's rows.
    """

    name: str
    tokenizer: str
    module: nn.Module
    vocab_size: int  # V
    width: int  # D
    length: int  # L at most
    pieces: Literal["clip", "bert"] = "clip"
    embedding: tuple[str, ...] = ("embeddings", "token_embedding")

    def table(self, params: Params) -> Float[Array, "V D"]:
        """The rows of the vocabulary, of this encoder's params."""
        return self.table_in(params)["embedding"]

    def table_in(self, params: Params) -> Params:
        """The params of which `embedding` is the table."""
        return functools.reduce(operator.getitem, self.embedding, params)


class Part(NamedTuple):
    """A network without learned rows: `name` is the key of its weights."""

    name: str
    module: nn.Module


class LatentScale(NamedTuple):
    """Latents as the denoiser sees them: those of the autoencoder times `factor`.

    Where a model says `mean` and `std` of each channel, their deviation from the one
    in units of the other.
    """

    factor: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def to_denoiser(self, z: Float[Array, "*B c"]) -> Float[Array, "*B c"]:
        if self.mean is None or self.std is None:
            return z * self.factor
        mean, std = _by_channel(self.mean, z), _by_channel(self.std, z)
        return (z - mean) * self.factor / std

    def to_autoencoder(self, latents: Float[Array, "*B c"]) -> Float[Array, "*B c"]:
        if self.mean is None or self.std is None:
            return latents / self.factor
        mean, std = _by_channel(self.mean, latents), _by_channel(self.std, latents)
        return latents * std / self.factor + mean


def _by_channel(numbers: tuple[float, ...], latents: Array) -> Array:
    """A number a channel, to be taken with latents; an inpainting model has twice c."""
    times = latents.shape[-1] // len(numbers)
    return jnp.broadcast_to(jnp.asarray(numbers * times), latents.shape)


def encode_text(
    text_encoders: tuple[TextEncoder, ...], condition: Condition
) -> Callable[..., Conditioning]:
    """`Family.encode_text` of a family with these parts, which compare by value."""

    def encode(params, ids, rows, sizes):
        outputs = {
            encoder.name: encoder.module.apply(
                {"params": params[encoder.name]}, ids[encoder.name], rows[encoder.name]
            )
            for encoder in text_encoders
        }
        return condition(outputs, sizes)

    return encode


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A frozen text-to-image model as the step and the samplers see it; no weights."""

    name: str
    text_encoders: tuple[TextEncoder, ...]
    # (x_t [B, h, w, c], times [B], *conditioning) to the model's prediction.
    denoiser: Part
    # `encode` gives moments [B, h, w, Z], `decode` takes latents [B, h, w, c].
    autoencoder: Part
    # Of the autoencoder's params, those by which pictures are made.
    picture_params: tuple[str, ...]
    condition: Condition
    # What is told instead of a prompt without text; None: such a prompt is encoded.
    tell_nothing: Callable[[Conditioning], Conditioning] | None = None
    process: Process
    scale: LatentScale
    # (moments [..., Z], noise [..., c]) to latents of the autoencoder, and to what else
    # of them `process` reads.
    sample_posterior: Callable[[Array, Array], Array]
    latent_channels: int  # c
    moment_channels: int  # Z
    # (the autoencoder's params, size=(height, width)) to what the denoiser sees beside
    # x_t [h, w, _] where there is no picture; None: x_t alone.
    canvas: Callable[..., Array] | None = None
    # The denoiser is told the guidance scale, `guidance=` [B], and asked once.
    tells_guidance: bool = False
    # Why no word can be learned from it, and what to do; None: one can.
    untrainable: str | None = None
    downscale: int  # pixels along a latent
    sample_size: tuple[int, int]  # height, width of the latents it was trained on
    # The class of diffusers' pipeline, and {part: (library, class)} in it.
    pipeline: str
    classes: Mapping[str, tuple[str, str]]
    # Parts of the pipeline that no network here reads; a model may lack them.
    optional_parts: tuple[str, ...]
    # What the pipeline calls those parts that it does not call by their key.
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # What the pipeline takes a scheduler_config.json to mean that does not say it.
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Every network by the key of its weights."""
        named = (*self.text_encoders, self.denoiser, self.autoencoder)
        return {part.name: part.module for part in named}

    @property
    def trained_through(self) -> dict[str, nn.Module]:
        """The networks that a train step runs, by the key of their weights."""
        named = (*self.text_encoders, self.denoiser)
        return {part.name: part.module for part in named}

    def folder(self, part: str) -> str:
        """A part's name in the pipeline, which is the folder of its files."""
        return self.folders.get(part, part)

    def clone_denoiser(self, **changed: Any) -> "Family":
        """The family with another way to compute the same denoiser."""
        part = self.denoiser
        part = part._replace(module=part.module.clone(**changed))
        return dataclasses.replace(self, denoiser=part)

    def clone_text_encoder(self, name: str, **changed: Any) -> "Family":
        """The family with another way to compute the same text encoder."""
        encoders = tuple(
            each._replace(module=each.module.clone(**changed))
            if each.name == name
            else each
            for each in self.text_encoders
        )
        return dataclasses.replace(self, text_encoders=encoders)

    def encode_text(
        self,
        params: Mapping[str, Params],
        ids: Mapping[str, Int[Array, "B L"]],
        rows: Mapping[str, Float[Array, "B K D"]],
        sizes: Int[Array, "B 6"],
    ) -> Conditioning:
        """What the denoiser is told of prompts, each with its own rows."""
        encode = encode_text(self.text_encoders, self.condition)
        return encode(params, ids, rows, sizes)

    def model_index(self, scheduler_class: str) -> dict[str, Any]:
        """model_index.json of a folder with these parts, as diffusers writes it."""
        return {
            "_class_name": self.pipeline,
            **{self.folder(part): list(named) for part, named in self.classes.items()},
            "scheduler": ["diffusers", scheduler_class],
        }

    def check_trains(self) -> None:
        """Raises `UserError` where no word can be learned from it."""
        if self.untrainable is not None:
            raise UserError(self.untrainable)

    def latent_side(self, resolution: int, key: str = "resolution") -> int:
        """Latents along a side of `resolution` pixels, which `key` gives.

        Raises `UserError` where the side is no whole number of latents.
        """
        if resolution % self.downscale:
            raise UserError(
                f"{key}: {resolution} is not a multiple of {self.downscale}, the "
                "pixels of a latent of this model"
            )
        return resolution // self.downscale
