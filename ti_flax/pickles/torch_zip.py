"""The zip files of torch.save, written and read without torch.

Such a file is a zip without compression: `archive/data.pkl` is the pickled object,
`archive/data/0`, `archive/data/1`, ... are the bytes of its tensors' storages
(torch/serialization.py, `_save`). Nothing in a file is executed, see `torch_pickle`;
reading takes time and memory in proportion to the file's length.
"""

import contextlib
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ti_flax.pickles import torch_pickle
from ti_flax.pickles.refused import SIGNS_OF_DAMAGE, Refused
from ti_flax.runtime.errors import UserError

# torch aligns storages so that it can map them into memory.
_ALIGNMENT = 64
_ZIP_HEADER_BYTES = 30

# torch writes four and one for each tensor; zipfile makes an object of each.
_MAX_ENTRIES = 2000
_ENTRY = b"PK\x01\x02"

# The first pickle of the format before torch 1.6: its magic number.
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def save(path: Path, value: object) -> None:
    """Writes what `torch.save(value, path)` writes; `value` as in `torch_pickle.dumps`.

    `torch.load(path, weights_only=True)` reads it, unless it holds a `ParameterDict`.
    The same value gives the same bytes: no time, no random id. A dtype torch has no
    storage for is a `KeyError`.
    """
    program, tensors = torch_pickle.dumps(value)
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:

        def write(name: str, data: bytes) -> None:
            # A ZipInfo is dated 1980; writestr with a bare name would ask the clock.
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.extra = _padding(
                file.tell() + _ZIP_HEADER_BYTES + len(entry.filename)
            )
            archive.writestr(entry, data)

        # Without the entry "byteorder", which torch adds since 2.1 and takes for little
        # where it is missing: AUTOMATIC1111 up to 1.9 refuses whatever else is here.
        write("data.pkl", program)
        for key, tensor in enumerate(tensors):
            write(f"data/{key}", tensor.tobytes())
        write("version", b"3\n")


def _padding(position: int) -> bytes:
    """The zip extra field, as torch names it, after which the data is aligned."""
    length = -(position + 4) % _ALIGNMENT
    return b"FB" + struct.pack("<H", length) + b"Z" * length


def load(path: Path) -> object:
    """What torch.save put into a file, tensors as read-only numpy arrays.

    Dictionaries (OrderedDict and ParameterDict too) come as dict, parameters as their
    tensor; arrays may share their storage's memory, as the tensors did.

    Raises:
        UserError: when the file is no zip of torch.save, is damaged or cut short,
            claims more bytes than it has, or names anything but tensors and plain
            containers.
    """
    with told_of(path):
        data = path.read_bytes()
        if data.count(_ENTRY) > _MAX_ENTRIES:
            raise Refused(f"is no embedding: it has more than {_MAX_ENTRIES} entries")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = Records(archive, len(data))
            return torch_pickle.loads(records.program(), records.storage)


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of torch.save, as one line that begins with it."""
    try:
        yield
    except Refused as refusal:
        raise UserError(f"{path} {refusal}") from None
    except zipfile.BadZipFile as error:
        with open(path, "rb") as file:
            head = file.read(len(_LEGACY_MAGIC))
        raise UserError(f"{path} {_not_a_zip(head)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except SIGNS_OF_DAMAGE as error:
        raise UserError(
            f"{path} is damaged: its content is not what torch.save writes; "
            "get it again, as .safetensors if there is one"
        ) from error


def _not_a_zip(head: bytes) -> str:
    if head.startswith(_LEGACY_MAGIC):
        return (
            "is in torch.save's format from before torch 1.6, which is not read: "
            "load it in torch and save it again, best as .safetensors"
        )
    if head.startswith(b"PK"):
        return "is cut short or damaged (no sound zip): get it again"
    return "is no file of torch.save: expected its zip format"


class Records:
    """The entries of the zip, all below one folder, which torch.save names freely."""

    def __init__(self, archive: zipfile.ZipFile, file_bytes: int) -> None:
        entries = archive.infolist()
        _check_entries(entries, file_bytes)
        roots = [
            entry.filename.removesuffix("data.pkl")
            for entry in entries
            if entry.filename.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise Refused("is a zip, but not of torch.save: expected one data.pkl")
        self._archive = archive
        self._root = roots[0]
        self._entries = {entry.filename: entry for entry in entries}
        self._bytes: dict[str, bytes] = {}

    def program(self) -> bytes:
        marked = f"{self._root}byteorder" in self._entries
        if marked and self._read("byteorder") != b"little":
            raise Refused("is big-endian: load it in torch and save .safetensors")
        return self._read("data.pkl")

    def storage(self, key: str) -> bytes:
        return self._read(f"data/{key}")

    def entry(self, name: str) -> zipfile.ZipInfo:
        return self._entries[self._root + name]

    def _read(self, name: str) -> bytes:
        if name not in self._bytes:
            self._bytes[name] = self._archive.read(self.entry(name))
        return self._bytes[name]


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Refuses, before a byte is read, what could grow beyond the file when read."""
    for entry in entries:
        if entry.flag_bits & 1:
            raise Refused("is an encrypted zip, which torch.save never writes")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored or entry.compress_size != entry.file_size:
            raise Refused("is a compressed zip, which torch.save never writes")
    # Entries may overlap: each could lie in the file and their sum be far longer.
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise Refused("is damaged: its entries claim more bytes than it has")
    if len({entry.filename for entry in entries}) != len(entries):
        raise Refused("is damaged: it has two entries of one name")
