"""Embeddings out of Hub repositories, `sd-concepts-library/...` among them."""

from pathlib import Path

from ti_flax.hub import snapshot
from ti_flax.hub.ids import HubId
from ti_flax.runtime.errors import UserError, one_line

SUFFIXES = (".safetensors", ".bin", ".pt", ".pti", ".npy", ".png")
# A repository may hold a whole pipeline: only the files at its top are embeddings.
_PATTERNS = ["learned_embeds*.safetensors", "learned_embeds*.bin"]


def embedding(name: HubId) -> Path:
    """The local copy of a repository's embeddings (a folder), or of one file.

    What the cache holds is not fetched again, and without a network it serves alone.

    Raises:
        UserError: when the repository cannot be read.
    """
    repo_id, file = name
    patterns = [file] if file else _PATTERNS
    try:
        folder = snapshot.download(repo_id, None, patterns)
    except Exception as error:  # whichever library the client is built on
        reason = one_line(error)
        raise UserError(
            f"{name} is no local file or folder, and cannot be fetched from the Hub "
            f"({reason}); check the name, the network and your access"
        ) from error
    path = folder / file
    if not path.exists():
        raise UserError(
            f"{name} has no embedding: expected {' or '.join(patterns)} in the Hub's "
            f"repository {repo_id}"
        )
    return path
