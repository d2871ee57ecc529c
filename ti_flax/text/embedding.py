"""A learned word: its token, its rows, where they come from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

NOTHING: Mapping[str, str] = MappingProxyType({})

SD1_WIDTH, SD2_WIDTH, SDXL_WIDTH_2 = 768, 1024, 1280


class Embedding(NamedTuple):
    """A learned word: its placeholder token, and a row for each of its vectors.

    `rows_2` are those of SDXL's second text encoder, as many as `rows`. `provenance`
    says how the rows came about, as `provenance.of_run` describes it.
    """

    token: str
    rows: Float32[np.ndarray, "K D"]
    rows_2: Float32[np.ndarray, "K E"] | None = None
    provenance: Mapping[str, str] = NOTHING

    @property
    def family(self) -> str:
        """The base models that such rows fit, by their widths."""
        if self.rows_2 is not None:
            return "SDXL"
        return {
            SD1_WIDTH: "Stable Diffusion 1.x",
            SD2_WIDTH: "Stable Diffusion 2.x",
            SDXL_WIDTH_2: "SDXL's second text encoder alone",
        }.get(self.rows.shape[1], f"a text encoder of width {self.rows.shape[1]}")
