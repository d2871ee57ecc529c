"""Replicate's place for the token, beside the rows: {token: names of its vectors}."""

import json
from pathlib import Path

from ti_flax.runtime import atomic
from ti_flax.text.embedding import Embedding

_NAME = "special_params.json"
# Some 300 vectors of the longest token have names of 10 kB.
_MAX_BYTES = 2**16


def read(rows: Path) -> str | None:
    """The token beside a file of rows; None where there is none that makes sense."""
    path = rows.with_name(_NAME)
    try:
        # A pipe would wait for ever, a device has no end.
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
        content = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (OSError, RecursionError, ValueError):
        return None
    return next(iter(content)) if isinstance(content, dict) and content else None


def write(rows: Path, embedding: Embedding) -> Path:
    """Writes the file beside that of the rows; its path."""
    path = rows.with_name(_NAME)
    vectors = "".join(f"<s{i}>" for i in range(embedding.num_vectors))
    with atomic.atomic_path(path) as temporary:
        temporary.write_text(json.dumps({embedding.token: vectors}))
    return path
