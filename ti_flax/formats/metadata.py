"""Provenance as texts beside the rows, in every format that has a place for them.

Keys begin with `ti_flax.`, beside whatever the format's own program writes.
"""

from collections.abc import Mapping

from ti_flax.text.embedding import Embedding

_PREFIX = "ti_flax."
_TOKEN = f"{_PREFIX}token"


def to_texts(embedding: Embedding) -> dict[str, str]:
    """The token and its provenance as safetensors metadata."""
    provenance = {_PREFIX + key: text for key, text in embedding.provenance.items()}
    return {_TOKEN: embedding.token, **provenance}


def token_in(metadata: Mapping[str, object]) -> object:
    """The token that `to_texts` wrote, or kohya's trigger phrase, or None."""
    return metadata.get(_TOKEN) or metadata.get("modelspec.trigger_phrase")


def provenance_in(metadata: Mapping[str, object]) -> dict[str, str]:
    """The provenance that `to_texts` wrote; empty in other programs' files."""
    return {
        key.removeprefix(_PREFIX): text
        for key, text in metadata.items()
        if isinstance(key, str) and isinstance(text, str)
        if key.startswith(_PREFIX) and key != _TOKEN
    }
