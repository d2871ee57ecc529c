"""The file of a model by torch.save, its tensors mapped into memory and not read."""

import io
import mmap
import struct
import zipfile
from pathlib import Path

from ti_flax.pickles import pickle_machine, torch_pickle, torch_zip
from ti_flax.pickles.refused import Refused
from ti_flax.runtime.regular_files import open_regular

# One a tensor, of which a file of SDXL with its average has 5,000.
_MAX_ENTRIES = 2**15
# With a name, as zip64 has it.
_MAX_ENTRY_BYTES = 300
_MAX_PROGRAM_BYTES = 16 * 2**20
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"


def load(path: Path) -> object:
    """What torch.save put into a file; arrays are read when their numbers are.

    Check sums are not compared, which would read all of it.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: as `torch_zip.load`, by the bounds of a model.
    """
    with open_regular(path) as file, torch_zip.told_of(path):
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            records = _MappedRecords(archive, data)
            if records.entry("data.pkl").file_size > _MAX_PROGRAM_BYTES:
                raise Refused(
                    f"is no model: its pickle has more than {_MAX_PROGRAM_BYTES} bytes"
                )
            program = records.program()
            return torch_pickle.loads(program, records.mapped, pickle_machine.MODEL)


def _check_directory(file: io.BufferedIOBase) -> None:
    """Refuses a long list of entries, of each of which zipfile makes an object."""
    end = zipfile._EndRecData(file)
    if end is not None and end[zipfile._ECD_SIZE] > _MAX_ENTRIES * _MAX_ENTRY_BYTES:
        raise Refused(f"is no model: it has more than {_MAX_ENTRIES} entries")


class _MappedRecords(torch_zip.Records):
    def __init__(self, archive: zipfile.ZipFile, data: mmap.mmap) -> None:
        super().__init__(archive, len(data))
        self._data = memoryview(data)

    def mapped(self, key: str) -> memoryview:
        """The bytes of a storage, which lie uncompressed in the file."""
        entry = self.entry(f"data/{key}")
        head = self._data[entry.header_offset :][: _HEADER.size]
        signature, name, extra = _HEADER.unpack(head)
        begin = entry.header_offset + _HEADER.size + name + extra
        if signature != _SIGNATURE or begin + entry.file_size > len(self._data):
            raise Refused(
                "is damaged: a tensor is not where the zip says: get it again"
            )
        return self._data[begin : begin + entry.file_size]
