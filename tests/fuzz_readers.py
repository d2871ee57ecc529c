"""Coverage-guided fuzzing of all embedding readers; CONTRIBUTING.md has the command.

    python tests/fuzz_readers.py FOLDER [flags of libFuzzer]

It needs atheris beside what the tests need. FOLDER gets the first inputs, made of the
project's own writers and of `formats/test_hostile_files.py`, and what is found on the
way. An input is a file but for its first byte, which says what is put around the rest:
a mutated pickle would hardly ever get past the check sum of a zip.

A run ends at an input that raises anything but a `UserError` of one short line, gives
rows or text that it must not, takes `SECONDS` or `MEGABYTES` more than the program.
"""

import base64
import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

# Not the ones that atheris has: to be imported again, so that it sees their branches.
for name in ("pickle", "zipfile"):
    sys.modules.pop(name)
with atheris.instrument_imports(include=["ti_flax", "pickle", "zipfile"]):
    from ti_flax.formats import describe, find, npy, registry, safetensors_file
    from ti_flax.runtime import errors
    from ti_flax.text.embedding import Embedding

SECONDS, MEGABYTES = 2, 1024
FOREVER = 60  # seconds by the clock
LONGEST = 4096  # bytes of an input; the table has kinds that need more
LONGEST_LINE = 500

# Controls, half characters, ends of lines, and marks that turn what follows them.
HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")

NUMBERS = np.ones(64, np.float32).tobytes()
PNG = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"sd-ti-embedding\0"
NPY_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"


def in_zip(program: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", NUMBERS)
    return file.getvalue()


def in_npy(program: bytes) -> bytes:
    return (
        b"\x93NUMPY\x01\0" + struct.pack("<H", len(NPY_HEADER)) + NPY_HEADER + program
    )


def in_safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + NUMBERS


def in_png(text: bytes) -> bytes:
    part = b"tEXt" + KEYWORD + base64.b64encode(text)
    return PNG + struct.pack(">I", len(part) - 4) + part + struct.pack(
        ">I", zlib.crc32(part)
    )  # fmt: skip


# By the first byte of an input: what stands around the rest, the name of the file, and
# the one beside it.
WAYS: tuple[tuple[Callable[[bytes], bytes], str, str], ...] = (
    (bytes, "toy.bin", ""),
    (in_zip, "toy.pt", ""),
    (in_npy, "toy.npy", ""),
    (in_safetensors, "toy.safetensors", ""),
    (in_png, "toy.png", ""),
    (in_safetensors, "long.safetensors", ""),
    (bytes, "special_params.json", "rows.pti"),
    (in_safetensors, "learned_embeds_2.safetensors", "learned_embeds.safetensors"),
)


def parted(content: bytes) -> bytes | None:
    """The input that a sound container's file comes of, with its own first byte."""
    if content.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile, LookupError):
            archive = zipfile.ZipFile(io.BytesIO(content))
            return b"\x01" + archive.read(archive.namelist()[0])
    elif content.startswith(npy.MAGIC):
        return b"\x02" + npy._split(content)[1]
    elif content[8:9] == b"{":
        (length,) = struct.unpack_from("<Q", content)
        return b"\x03" + content[8 : 8 + length]
    elif KEYWORD in content:
        text = content.split(KEYWORD)[1]
        with contextlib.suppress(ValueError):
            return b"\x04" + base64.b64decode(text[:-4])
    return None


def first_inputs(folder: Path) -> None:
    """Writes the inputs to begin with; those of an earlier run stay."""
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "formats")]
    import test_hostile_files

    contents = [*test_hostile_files.FILES.values(), *written()]
    inputs = {b"\0" + content for content in contents}
    inputs |= {parted(content) or b"\0" for content in contents}
    inputs |= {b"\x05" + entry[1:] for entry in inputs if entry[0] == 3}
    inputs |= {b"\x07" + entry[1:] for entry in inputs if entry[0] == 3}
    inputs |= {b"\x06" + json.dumps({"<toy>": "<s0>"}).encode(), b"\x06[]", b"\x06{}"}
    folder.mkdir(parents=True, exist_ok=True)
    for content in inputs:
        if len(content) <= LONGEST:
            (folder / f"{zlib.crc32(content):08x}").write_bytes(content)


def written() -> list[bytes]:
    """A small file of every format and kind."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in registry.FORMATS.items():
            for encoders in range(1, layout.num_encoders + 1):
                if (name, encoders) == ("sdxl", 1):
                    continue
                names = ("text_encoder", "text_encoder_2")[:encoders]
                rows = {encoder: np.ones((1, 4), np.float32) for encoder in names}
                word = Embedding("<toy>", rows, {"steps": "3", "settings": '{"a": 1}'})
                for suffix in layout.suffixes:
                    path = Path(folder) / f"learned_embeds{suffix}"
                    files = registry.write(path, name, word)
                    made += [file.read_bytes() for file in files]
    return made


class Reader:
    """Reads an input as `inspect` does, and checks what comes of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        word = Embedding("<toy>", {"text_encoder": np.ones((1, 32), np.float32)})
        registry.write(folder / "rows.pti", "replicate", word)
        registry.write(folder / "learned_embeds.safetensors", "diffusers", word)

    def __call__(self, data: bytes) -> None:
        way = data[0] % len(WAYS) if data else 0
        around, name, beside = WAYS[way]
        path = self._folder / name
        path.write_bytes(around(data[1:]))
        if name.startswith("long"):
            os.truncate(path, safetensors_file.MAX_FILE_BYTES + 1)
        start = time.process_time()
        try:
            self._read(self._folder / (beside or name))
        finally:
            path.unlink()
        # libFuzzer's own clock counts what other programs of the machine take, too.
        assert time.process_time() - start < SECONDS

    def _read(self, path: Path) -> None:
        try:
            told = describe.describe_embedding(file=str(path))
            learned = find.load_embedding(path)
        except errors.UserError as error:
            line = str(error)
            assert line.isprintable() and len(line) < LONGEST_LINE, ascii(line[:2000])
            return
        assert not HARMFUL.search(told.replace("\n", "")), ascii(told[:2000])
        for rows in learned.rows.values():
            assert rows.ndim == 2 and rows.size and np.isfinite(rows).all()


def limit_memory() -> None:
    """Makes more than `MEGABYTES` beyond the program a MemoryError at once."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    folder, *flags = sys.argv[1:]
    # The table has files of hundreds of megabytes: another process's memory.
    making = multiprocessing.Process(target=first_inputs, args=(Path(folder),))
    making.start()
    making.join()
    limits = [f"-max_len={LONGEST}", f"-timeout={FOREVER}", "-print_final_stats=1"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        atheris.Setup([sys.argv[0], *limits, folder, *flags], Reader(Path(place)))
        limit_memory()
        atheris.Fuzz()


if __name__ == "__main__":
    main()
