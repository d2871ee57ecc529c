"""The folder of a learned concept, as the Concepts Library has it."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ti_flax.formats import find, registry
from ti_flax.publishing import own_files
from ti_flax.publishing.model_card import README_NAME
from ti_flax.runtime import atomic, own_pictures
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

TOKEN_NAME = "token_identifier.txt"
PROPERTY_NAME = "type_of_concept.txt"
PICTURES_NAME = "concept_images"


def export_concept(
    folder: Path,
    embedding: Embedding,
    learnable_property: Literal["object", "style"],
    pictures: Collection[UInt8[np.ndarray, "_ _ 3"]],
) -> None:
    """Writes the files of a Concepts Library folder, which is made when missing.

    learned_embeds.bin and .safetensors hold float32 [K, D] under the placeholder token,
    as diffusers writes them; SDXL's are two files each, and learned_embeds_sdxl has
    both encoders' rows for all other programs. The same input gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (find.SAFETENSORS_NAME, find.BIN_NAME):
        written = registry.write(folder / name, "diffusers", embedding)
        if len(written) == 1:
            # An earlier concept of SDXL must not lend this one its second half.
            (folder / name.replace("embeds", "embeds_2")).unlink(missing_ok=True)
    if len(embedding.rows) > 1:
        registry.write(folder / find.SDXL_NAME, "sdxl", embedding)
    else:
        (folder / find.SDXL_NAME).unlink(missing_ok=True)
    with atomic.atomic_path(folder / TOKEN_NAME) as temporary:
        temporary.write_bytes(embedding.token.encode())
    with atomic.atomic_path(folder / PROPERTY_NAME) as temporary:
        temporary.write_bytes(learnable_property.encode())
    _write_pictures(folder / PICTURES_NAME, pictures)


def _write_pictures(
    folder: Path, pictures: Collection[UInt8[np.ndarray, "_ _ 3"]]
) -> None:
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        with atomic.atomic_path(folder / f"{number}.jpeg") as temporary:
            own_pictures.save(Image.fromarray(picture), temporary)
    # An earlier export of more pictures must not lend its last ones to this concept.
    for old in folder.glob("*.jpeg"):
        if old.stem.isdecimal() and int(old.stem) >= len(pictures):
            old.unlink()


# A concept's own files; never checkpoints, samples, or the paths in config.yaml.
_PATTERNS = (
    README_NAME,
    "learned_embeds.safetensors",
    "learned_embeds.bin",
    "learned_embeds_2.safetensors",
    "learned_embeds_2.bin",
    find.SDXL_NAME,
    TOKEN_NAME,
    PROPERTY_NAME,
    f"{PICTURES_NAME}/*.jpeg",
)


def concept_files(folder: Path) -> list[Path]:
    """The files of a concept's folder that are uploaded.

    Raises:
        UserError: when it is no concept's folder, or one of them is a link or not what
            its name says.
    """
    found = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
    if folder / find.SAFETENSORS_NAME not in found:
        raise UserError(
            f"{folder} is no concept's folder: expected {find.SAFETENSORS_NAME} in it"
        )
    for path in found:
        own_files.check(folder, path)
    return found
