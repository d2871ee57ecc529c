"""The words of a base model, for a learned word to be compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ti_flax.formats import find
from ti_flax.text.embedding import Embedding


class Vocabulary:
    """A model's words, read once for all that is compared with them."""

    def __init__(self, name_or_path: str, revision: str | None) -> None:
        # Imported late: a file alone is shown without JAX.
        from ti_flax.models import base_model
        from ti_flax.text.initial_rows import vocabulary_norms
        from ti_flax.text.tokenizer import load_tokenizer

        model = base_model.open_model(name_or_path, revision)
        encoders = model.family.text_encoders
        self._widths = {each.name: each.width for each in encoders}
        self._words = {
            each.name: (
                load_tokenizer(model.tokenizer(each), each.pieces),
                np.asarray(each.table(model.load(each.name))),
            )
            for each in encoders
        }
        self._norms = {
            name: vocabulary_norms(table) for name, (_, table) in self._words.items()
        }

    def compare(self, learned: Embedding, file: Path) -> Mapping[str, dict[str, Any]]:
        """By encoder, how long words are, and those nearest to each vector by cosine.

        Raises `UserError` for a word of another kind of model.
        """
        from ti_flax.text.nearest_words import nearest_words

        find.check_fits(learned, self._widths, "model", file)
        compared = {}
        for name, (tokenizer, table) in self._words.items():
            median, high = self._norms[name]
            nearest = nearest_words(tokenizer, table, learned.rows[name])
            compared[name] = {
                "vocabulary": {
                    "median": round(median, 4),
                    "percentile_99": round(high, 4),
                },
                "nearest": [
                    [{"word": word, "cosine": cosine} for word, cosine in near]
                    for near in nearest
                ],
            }
        return compared
