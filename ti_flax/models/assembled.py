"""A model whose parts are from several places."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.models.sources import Source
from ti_flax.models.tensors import Tensor

# The tokenizer that reads for a text encoder.
_ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}


class Assembled(NamedTuple):
    """A source of which some parts, by name, come from `others`."""

    base: Source
    others: Mapping[str, Source]

    @property
    def path(self) -> Path:
        return self.base.path

    def config(self, part: str) -> Mapping[str, Any]:
        return self._of(part).config(part)

    def tensors(self, part: str) -> Iterator[Tensor]:
        return self._of(part).tensors(part)

    def tokenizer(self, name: str) -> Path:
        """The one beside the text encoder, where it has one, or the base model's."""
        own = self._of(_ENCODERS[name]).tokenizer(name)
        return own if own.is_dir() else self.base.tokenizer(name)

    def copy_part(self, part: str, folder: Path) -> None:
        self._of(part).copy_part(part, folder)

    def misfit(self, part: str, reasons: str) -> str:
        return self._of(part).misfit(part, reasons)

    def fingerprint(self, parts: Iterable[str]) -> str:
        """Over those of the sources, each of the parts that it gives."""
        parts = list(parts)
        sums = [self.base.fingerprint(p for p in parts if p not in self.others)]
        sums += [self.others[p].fingerprint([p]) for p in parts if p in self.others]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def _of(self, part: str) -> Source:
        return self.others.get(part, self.base)
