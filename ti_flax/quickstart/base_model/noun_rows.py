"""Names of looks and styles while the base model is trained.

A name's row is the row of the word for any critter (or any art) plus one learned vector
for each attribute that it names. So every look and style that is shown has a name, and
what a name says of one of them it says of all: in a model as small as this, 40 rows
learned one by one are 40 points without a way between them, and no row for a new look.
The nouns of the vocabulary get their rows when training ends.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from ti_flax.quickstart.critters import drawing, world
from ti_flax.quickstart.critters.drawing import Look, Scene, Style

_LOOK = (world.SHAPES, world.BODIES, world.ACCENTS, world.PATTERNS, world.TOPS)
_STYLE = (drawing.TINTS, drawing.TEXTURES)
_STARTS = np.cumsum([0, *map(len, _LOOK + _STYLE)]).tolist()

NUM_PARTS = len(_LOOK + _STYLE)


def parts(scene: Scene) -> list[int]:
    """The vectors of the scene's look and style, one an attribute."""
    return [*_look_parts(scene.look), *_style_parts(scene.style)]


def _look_parts(look: Look) -> list[int]:
    named = zip(_STARTS, _LOOK, look, strict=False)
    return [start + values.index(value) for start, values, value in named]


def _style_parts(style: Style) -> list[int]:
    named = zip(_STARTS[len(_LOOK) :], _STYLE, style, strict=False)
    return [start + values.index(value) for start, values, value in named]


class Names(torch.nn.Module):
    """The vectors, and what puts them in the place of the nouns of a caption."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int) -> None:
        super().__init__()
        self.vectors = torch.nn.Embedding(int(_STARTS[-1]), width)
        torch.nn.init.normal_(self.vectors.weight, std=0.02)
        ids = tokenizer.convert_tokens_to_ids
        # Of looks and of styles: the word every name starts from, and the nouns.
        self.words = [ids(f"{w}</w>") for w in (world.OBJECT_WORD, world.STYLE_WORD)]
        self.nouns = [
            [ids(f"{noun}</w>") for noun in nouns]
            for nouns in (world.SPECIES_NOUNS, world.STYLE_NOUNS)
        ]

    def forward(
        self,
        embedded: Float[Tensor, "B L D"],
        ids: Int[Tensor, "B L"],
        table: Float[Tensor, "V D"],
        parts: Int[Tensor, "B parts"],
        said: Bool[Tensor, "B parts"],
    ) -> Float[Tensor, "B L D"]:
        """Rows of the tokens, where each noun's is the name of what is shown.

        Of the name only the parts that are `said` count: the way from the bare word to
        the full name is learned too, which is the way that Textual Inversion goes.
        """
        vectors = self.vectors(parts) * said[..., None]
        of_kind = vectors.split((len(_LOOK), len(_STYLE)), dim=1)
        for word, nouns, own in zip(self.words, self.nouns, of_kind, strict=True):
            named = torch.isin(ids, ids.new_tensor(nouns))
            name = table[word] + own.sum(1)
            embedded = torch.where(named[..., None], name[:, None], embedded)
        return embedded

    @torch.no_grad()
    def write_nouns(self, table: Float[Tensor, "V D"]) -> None:
        """Gives every noun of the vocabulary the row of the look or style it names."""
        own = (
            [_look_parts(look) for look in world.SPECIES.values()],
            [_style_parts(style) for style in world.STYLES.values()],
        )
        for word, nouns, named in zip(self.words, self.nouns, own, strict=True):
            indices = torch.tensor(named, device=table.device)
            table[nouns] = table[word] + self.vectors(indices).sum(1)
