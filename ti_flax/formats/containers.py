"""Files as named tensors: safetensors, torch.save, numpy and PNG, known by their bytes.

What the names mean is for the other modules of this package.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ti_flax.formats import a1111_png, bounds, npy, safetensors_file
from ti_flax.formats.content import Content
from ti_flax.pickles import torch_zip
from ti_flax.pickles.refused import Refused
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError


def read(file: Path) -> Content:
    """What a file's container holds, by the first container that knows its bytes.

    Raises:
        UserError: on what is no such file, or damaged.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist: expected an embedding file or folder")
    size = file.stat().st_size
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if size > safetensors_file.MAX_FILE_BYTES and head[8:9] == b"{":
        return _bounded(file, safetensors_file.read_bundle(file, size))
    if size > safetensors_file.MAX_FILE_BYTES:
        raise safetensors_file.too_long(file, size)
    for container in _CONTAINERS:
        if container.knows(head):
            return _bounded(file, container.read(file))
    raise UserError(
        f"{file} is no embedding file: expected the bytes of safetensors, of "
        "torch.save (.bin, .pt), of a PNG or of a .npy"
    )


def _bounded(file: Path, content: Content) -> Content:
    """The content, all of which may now be hashed, compared and printed."""
    try:
        bounds.check_bounds(content.value)
        bounds.check_bounds(dict(content.metadata))
    except Refused as refusal:
        raise UserError(f"{file} {refusal}") from None
    return content


def write(path: Path, content: Content) -> None:
    """Writes a file of the content's kind; the same content gives the same bytes."""
    with atomic.atomic_path(path) as temporary:
        match content.kind:
            case "safetensors":
                safetensors_file.write_safetensors(temporary, content)
            case "torch":
                torch_zip.save(temporary, content.value)
            case "png":
                a1111_png.save(temporary, content.value)
            case "npy":
                npy.save(temporary, content.value)


class _Container(NamedTuple):
    """A way to store named tensors: how it begins, and how it is read."""

    knows: Callable[[bytes], bool]
    read: Callable[[Path], Content]


_CONTAINERS = (
    # Eight bytes with the header's length, then the header, a JSON object.
    _Container(lambda head: head[8:9] == b"{", safetensors_file.read_safetensors),
    # A zip, or the bare pickle of torch before 1.6, which torch_zip explains.
    _Container(
        lambda head: head.startswith((b"PK", b"\x80")),
        lambda file: Content("torch", torch_zip.load(file)),
    ),
    _Container(
        lambda head: head.startswith(npy.MAGIC),
        lambda file: Content("npy", npy.load(file)),
    ),
    _Container(
        lambda head: head.startswith(a1111_png.MAGIC),
        lambda file: Content("png", a1111_png.load(file)),
    ),
)
