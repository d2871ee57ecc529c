"""The word as it was at each look of a run, for those who choose by the previews."""

import re
from pathlib import Path

from ti_flax.formats import programs, registry
from ti_flax.text.embedding import Embedding

FOLDER = "words"


def path_of(folder: Path, token: str, step: int) -> Path:
    """Its file, whose name is the word in AUTOMATIC1111 and ComfyUI."""
    return folder / FOLDER / f"{programs.file_name(token)}-{step:06d}.safetensors"


def write(folder: Path, word: Embedding, step: int, most: int | None) -> None:
    """Writes the word after `step` steps; of all looks the newest `most` stay.

    None: all of them.
    """
    path = path_of(folder, word.token, step)
    if most != 0:
        # The one file of both text encoders' rows.
        registry.write(path, "sdxl" if len(word.rows) > 1 else "diffusers", word)
    if most is not None:
        for _, old in _found(folder, word.token)[: -most or None]:
            old.unlink()


def remove_after(folder: Path, token: str, step: int) -> None:
    """Removes those of later steps, of an earlier run or of one that went further."""
    for number, path in _found(folder, token):
        if number > step:
            path.unlink()


def _found(folder: Path, token: str) -> list[tuple[int, Path]]:
    """Steps and files, from the first."""
    name = re.escape(programs.file_name(token))
    found = []
    for path in folder.joinpath(FOLDER).glob("*.safetensors"):
        match = re.fullmatch(rf"{name}-(\d{{6,}})\.safetensors", path.name)
        if match and path.is_file() and not path.is_symlink():
            found.append((int(match[1]), path))
    return sorted(found)
