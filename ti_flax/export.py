"""Learned rows as files: what a run leaves for PyTorch users, and what is read back.

A file is known by its content, never by its name. `_CONTAINERS` says how bytes become
named tensors, `_LAYOUTS` how a program names them: another format is another entry.
"""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float32, UInt8
from PIL import Image

from ti_flax import files, torch_zip
from ti_flax.errors import UserError

SAFETENSORS_NAME = "learned_embeds.safetensors"
BIN_NAME = "learned_embeds.bin"

# 75 vectors for the widest text encoder in use (4,096) have 1.2 MB.
_MAX_FILE_BYTES = 16 * 2**20
_MAX_TEXT = 80
_JPEG_QUALITY = 95

_DTYPES = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


class Embedding(NamedTuple):
    """A learned word: its placeholder token, and a row for each of its vectors."""

    token: str
    rows: Float32[np.ndarray, "K D"]


def load_embedding(path: Path | str) -> Embedding:
    """Reads an embedding file, or the one in a folder under diffusers' usual name.

    Nothing in the file is executed. Raises `UserError` in one line when there is no
    such file, it is damaged, its format is unknown, or its rows are not finite.
    """
    file = _find_file(Path(path))
    content = _read_content(file)
    for layout in _LAYOUTS:
        found = layout.find(content)
        if found is not None:
            token, tensor = found
            return Embedding(_checked_token(file, token), _checked_rows(file, tensor))
    programs = ", ".join(layout.program for layout in _LAYOUTS)
    raise UserError(
        f"{file} holds no embedding in a known format ({programs}: one key, the token, "
        f"with its rows); found {_describe(content)}"
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
    # safetensors takes the memory as it lies, whatever the strides say.
    tensors = {embedding.token: np.ascontiguousarray(embedding.rows, np.float32)}
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(folder / BIN_NAME) as temporary:
        torch_zip.save(temporary, tensors)
    with files.atomic_path(folder / SAFETENSORS_NAME) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    with files.atomic_path(folder / "token_identifier.txt") as temporary:
        temporary.write_bytes(embedding.token.encode())
    with files.atomic_path(folder / "type_of_concept.txt") as temporary:
        temporary.write_bytes(learnable_property.encode())
    _write_pictures(folder / "concept_images", pictures)


def _write_pictures(folder: Path, pictures: UInt8[np.ndarray, "N H W 3"]) -> None:
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        with files.atomic_path(folder / f"{number}.jpeg") as temporary:
            Image.fromarray(picture).save(temporary, "JPEG", quality=_JPEG_QUALITY)
    # An earlier export of more pictures must not lend its last ones to this concept.
    for old in folder.glob("*.jpeg"):
        if old.stem.isdecimal() and int(old.stem) >= len(pictures):
            old.unlink()


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} is a folder without an embedding: "
        f"expected {SAFETENSORS_NAME} or {BIN_NAME} in it"
    )


def _read_content(file: Path) -> object:
    """What a file's container holds, by the first container that knows its bytes."""
    if not file.is_file():
        raise UserError(f"{file} does not exist: expected an embedding file or folder")
    size = file.stat().st_size
    if size > _MAX_FILE_BYTES:
        raise UserError(
            f"{file} is no embedding: it has {size} bytes, "
            f"expected at most {_MAX_FILE_BYTES}"
        )
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    for container in _CONTAINERS:
        if container.knows(head):
            return container.read(file)
    raise UserError(
        f"{file} is no embedding file: expected the bytes of safetensors or of "
        "torch.save (.bin, .pt)"
    )


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    # safetensors.numpy knows no bfloat16, so its dtypes are looked up here.
    try:
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(
                entry["shape"]
            )
            for name, entry in safetensors.deserialize(file.read_bytes())
        }
    except KeyError as error:
        raise UserError(
            f"{file} holds numbers of type {error}: an embedding's are one of "
            f"{', '.join(_DTYPES)}"
        ) from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(
            f"{file} is a damaged safetensors file ({_shown(error)}): get it again"
        ) from error


class _Container(NamedTuple):
    """A way to store named tensors: how it begins, and how it is read."""

    knows: Callable[[bytes], bool]
    read: Callable[[Path], object]


_CONTAINERS = (
    # Eight bytes with the header's length, then the header, a JSON object.
    _Container(lambda head: head[8:9] == b"{", _read_safetensors),
    # A zip, or the bare pickle of torch before 1.6, which torch_zip explains.
    _Container(lambda head: head.startswith((b"PK", b"\x80")), torch_zip.load),
)


# Alone in a file these look like diffusers' token, but are other programs' field names.
_FIELD_NAMES = frozenset(
    {"emb_params", "emp_params", "clip_l", "clip_g", "t5", "t5xxl"}
)


def _find_diffusers(content: object) -> tuple[str, np.ndarray] | None:
    """diffusers' textual_inversion.py: `{token: [n, D]}`, up to 0.15 `{token: [D]}`."""
    if not isinstance(content, dict) or len(content) != 1:
        return None
    [(token, tensor)] = content.items()
    if token in _FIELD_NAMES or not isinstance(token, str):
        return None
    return (token, tensor) if isinstance(tensor, np.ndarray) else None


class _Layout(NamedTuple):
    """How a program names the tensors of an embedding."""

    program: str
    # The token and its rows, [n, D] or [D]; None when the content is not laid out so.
    find: Callable[[object], tuple[str, np.ndarray] | None]


_LAYOUTS = (_Layout("diffusers", _find_diffusers),)


def _checked_token(file: Path, token: str) -> str:
    # Control characters and lone surrogates would spoil terminals and text files.
    strange = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in token)
    if strange or not token.strip():
        raise UserError(f"{file} has the token {_shown(token)}: expected a word")
    return token


def _checked_rows(file: Path, tensor: np.ndarray) -> Float32[np.ndarray, "K D"]:
    if tensor.dtype not in _DTYPES.values() or tensor.ndim not in (1, 2):
        raise UserError(
            f"{file} holds a tensor of {tensor.dtype} with {tensor.ndim} dimensions: "
            "expected floating point rows, [vectors, width]"
        )
    if tensor.size == 0:
        raise UserError(f"{file} holds an empty tensor: expected at least one row")
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.array(np.atleast_2d(tensor), np.float32, order="C")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        raise UserError(
            f"{file} has NaN or infinity in {bad} of {len(rows)} rows: the training "
            "that made it has diverged, take an earlier file"
        )
    return rows


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    # Sorted, since safetensors gives them in any order.
    keys = ", ".join(sorted(map(str, content)))
    return f"{len(content)} key(s) {_shown(keys)}"


def _shown(value: object) -> str:
    """A value out of a stranger's file, short and on one line."""
    return ascii(str(value)[:_MAX_TEXT])
