"""A learned word: its token, its rows, where they come from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

NOTHING: Mapping[str, str] = MappingProxyType({})

# Every diffusers pipeline with a text encoder has this one.
FIRST_ENCODER = "text_encoder"

SD1_WIDTH, SD2_WIDTH = 768, 1024
# Of latent diffusion's BERT, and of SDXL's second text encoder, whose rows come with
# those of its first.
LDM_WIDTH = 1280


class Embedding(NamedTuple):
    """A learned word: its placeholder token, and a row for each of its vectors.

    `rows` are [K, D] for each text encoder of the base model, by its name there:
    "text_encoder", and for SDXL also "text_encoder_2". K is the same for all, D the
    encoder's own width. `provenance` says how they came about (`provenance.of_run`).
    """

    token: str
    rows: dict[str, Float32[np.ndarray, "K _"]]
    provenance: Mapping[str, str] = NOTHING

    @property
    def num_vectors(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder, by its name."""
        return {encoder: rows.shape[1] for encoder, rows in self.rows.items()}

    @property
    def fits_ldm(self) -> bool:
        """Whether latent diffusion with BERT reads such rows."""
        return self.widths == {FIRST_ENCODER: LDM_WIDTH}

    @property
    def family(self) -> str:
        """The base models that such rows fit, by their widths."""
        if len(self.rows) > 1:
            return "SDXL"
        [width] = self.widths.values()
        return {
            SD1_WIDTH: "Stable Diffusion 1.x",
            SD2_WIDTH: "Stable Diffusion 2.x",
            LDM_WIDTH: "latent diffusion with BERT (or SDXL's second text encoder, "
            "without its first)",
        }.get(width, f"a text encoder of width {width}")
