"""Learned rows as files: what a run leaves for PyTorch users, and what is read back.

`formats` knows how every program writes embeddings; this module knows folders.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.formats import registry
from ti_flax.formats.checks import Embedding
from ti_flax.hub import download, ids
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError

SAFETENSORS_NAME = "learned_embeds.safetensors"
BIN_NAME = "learned_embeds.bin"
TOKEN_NAME = "token_identifier.txt"
PROPERTY_NAME = "type_of_concept.txt"
PICTURES_NAME = "concept_images"

_JPEG_QUALITY = 95


def load_embedding(name_or_path: Path | str, token: str | None = None) -> Embedding:
    """Reads an embedding from a file, a folder or a Hub repository, in any format.

    A folder or repository is read as diffusers does: learned_embeds.safetensors, else
    learned_embeds.bin, else its only embedding file. `sd-concepts-library/cat-toy` is a
    repository, `owner/name/file.safetensors` a file in one. Of a file with several
    words, `token` says which.

    Nothing in the file is executed. Raises `UserError` in one line when there is no
    such file, it is damaged, its format is unknown, or its rows are not finite.
    """
    return registry.read(find_file(name_or_path), token).embedding


def load_for_model(
    name_or_path: Path | str, width: int, key: str, token: str | None = None
) -> Embedding:
    """`load_embedding` for a model with one text encoder of this width.

    Raises `UserError`, beginning with `key`, when the rows are for another family.
    """
    learned = load_embedding(name_or_path, token)
    check_fits(learned, width, key, name_or_path)
    return learned


def check_fits(
    learned: Embedding, width: int, key: str, name_or_path: Path | str
) -> None:
    """Raises `UserError` when rows are not for a single text encoder of this width."""
    if learned.rows_2 is not None:
        raise UserError(
            f"{key}: {name_or_path} is for SDXL, it has rows for two text encoders, "
            "this model has one; use a model of the kind it was trained with"
        )
    if learned.rows.shape[1] != width:
        raise UserError(
            f"{key}: {name_or_path} has rows of width {learned.rows.shape[1]} "
            f"({learned.family}), the model's text encoder has width {width} (768 is "
            "Stable Diffusion 1.x, 1024 2.x); use a model of the kind it was trained "
            "with"
        )


def find_file(name_or_path: Path | str) -> Path:
    """The local file of an embedding, downloaded when it is in a Hub repository."""
    path = Path(name_or_path)
    named = ids.parse(str(name_or_path))
    if named is not None and not path.exists():
        path = download.embedding(named)
    if not path.is_dir():
        return path
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (path / name).is_file():
            return path / name
    others = [file for file in path.iterdir() if file.suffix in download.SUFFIXES]
    if len(others) == 1:
        return others[0]
    raise UserError(
        f"{path} is a folder without an embedding: expected {SAFETENSORS_NAME} or "
        f"{BIN_NAME} in it, or a single file, found {len(others)}"
    )


def export_concept(
    folder: Path,
    embedding: Embedding,
    learnable_property: Literal["object", "style"],
    pictures: UInt8[np.ndarray, "N H W 3"],
) -> None:
    """Writes the files of a Concepts Library folder, which is made when missing.

    learned_embeds.bin and .safetensors hold float32 [K, D] under the placeholder token,
    as diffusers writes them; the same input gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SAFETENSORS_NAME, BIN_NAME):
        written = registry.write(folder / name, "diffusers", embedding)
        if len(written) == 1:
            # An earlier concept of SDXL must not lend this one its second half.
            (folder / name.replace("embeds", "embeds_2")).unlink(missing_ok=True)
    with atomic.atomic_path(folder / TOKEN_NAME) as temporary:
        temporary.write_bytes(embedding.token.encode())
    with atomic.atomic_path(folder / PROPERTY_NAME) as temporary:
        temporary.write_bytes(learnable_property.encode())
    _write_pictures(folder / PICTURES_NAME, pictures)


def _write_pictures(folder: Path, pictures: UInt8[np.ndarray, "N H W 3"]) -> None:
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        with atomic.atomic_path(folder / f"{number}.jpeg") as temporary:
            Image.fromarray(picture).save(temporary, "JPEG", quality=_JPEG_QUALITY)
    # An earlier export of more pictures must not lend its last ones to this concept.
    for old in folder.glob("*.jpeg"):
        if old.stem.isdecimal() and int(old.stem) >= len(pictures):
            old.unlink()
