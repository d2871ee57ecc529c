"""Files of strangers end in a result or in one line, in bounded time and memory.

`test_registry` cuts and changes embedding files in every format, `test_torch_zip` what
torch nests; here are headers of safetensors made up from their grammar, pictures,
weights and bombs.
"""

import io
import json
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from ti_flax.data.buckets import Cropping
from ti_flax.data.folder import read_pictures
from ti_flax.formats import find
from ti_flax.models import base_model
from ti_flax.models.sources import DiffusersFolder
from ti_flax.models.torch_params import load_params
from ti_flax.runtime import errors

FEW = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SECONDS, BYTES = 5.0, 64 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def assert_harmless(read, *arguments):
    """A result or one line; the time is that of this process alone."""
    tracemalloc.start()
    start = time.process_time()
    try:
        result = read(*arguments)
    except errors.UserError as error:
        result = None
        assert "\n" not in str(error) and len(str(error)) < 1000
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < SECONDS and peak < BYTES
    return result


# safetensors: eight bytes with the header's length, a JSON header, the numbers.

SIZES = st.sampled_from([0, 1, 2, 4, 8, -1, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5])
WORDS = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X", "", "\0", "é"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | SIZES | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3)
    ),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": WORDS | ANYTHING,
        "shape": st.lists(SIZES, max_size=4) | ANYTHING,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | ANYTHING,
        "more": ANYTHING,
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(["<toy>", "emb_params", "clip_l", "bundle_emb.a", "__metadata__"]),
    ENTRIES | ANYTHING,
    max_size=3,
)
SOUND = {"<toy>": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}


def as_safetensors(header, numbers=bytes(8), length=None):
    text = json.dumps(header).encode()
    claimed = len(text) if length is None else length
    return struct.pack("<Q", claimed) + text + numbers


@FEW
@given(
    header=HEADERS | ENTRIES.map(lambda entry: {"<toy>": {**SOUND["<toy>"], **entry}}),
    numbers=st.binary(max_size=16),
    length=st.none() | st.sampled_from([0, 1, 2**32, 2**60, 2**64 - 1]),
)
def test_any_header_of_safetensors_gives_finite_rows_or_one_line(
    folder, header, numbers, length
):
    path = folder / "made_up.safetensors"
    path.write_bytes(as_safetensors(header, numbers, length))
    learned = assert_harmless(find.load_embedding, path)
    if learned is not None:
        for rows in learned.rows.values():
            assert np.isfinite(rows).all() and rows.ndim == 2


@FEW
@given(text=st.text(alphabet='{}[]":,0129.eE-\\un', max_size=60))
def test_any_text_as_a_header_gives_one_line(folder, text):
    path = folder / "text.safetensors"
    data = ("{" + text).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    assert assert_harmless(find.load_embedding, path) is None


def one_tensor(numbers=bytes(8), length=None, **entry):
    return as_safetensors({"<toy>": SOUND["<toy>"] | entry}, numbers, length)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (one_tensor(length=2**62), "damaged"),
        (one_tensor(length=10**5), "damaged"),
        (one_tensor(numbers=b""), "damaged"),
        (one_tensor()[:30], "damaged"),
        (one_tensor(struct.pack("<2f", np.nan, 1)), "NaN or infinity"),
        (one_tensor(shape=[2**40]), "damaged"),
        (one_tensor(shape=[2**40] * 3), "damaged"),
        (one_tensor(shape=[2**62, 2**62]), "damaged"),
        (one_tensor(b"", shape=[0, 2**60], data_offsets=[0, 0]), "empty|damaged"),
        (one_tensor(b"", shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "damaged"),
        (one_tensor(shape=[2] + [1] * 100), "damaged"),
        (one_tensor(data_offsets=[0, 2**40]), "damaged"),
        (one_tensor(data_offsets=[8, 0]), "damaged"),
        (one_tensor(dtype="F31"), "damaged"),
        (struct.pack("<Q", 5) + b"{" * 5, "damaged"),
        (struct.pack("<Q", 50_000) + b'{"a":' * 10_000, "damaged"),
        (struct.pack("<Q", 10**6) + b"{" + b"[" * (10**6 - 1), "damaged"),
    ],
    ids=[
        "terabytes",
        "long header",
        "no data",
        "cut",
        "nan",
        "long",
        "shape",
        "overflow",
        "empty",
        "empty overflow",
        "dimensions",
        "long data",
        "backwards",
        "dtype",
        "braces",
        "nested objects",
        "nested lists",
    ],
)
def test_absurd_claims_of_safetensors(tmp_path, content, told):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=told) as caught:
        find.load_embedding(path)
    assert str(caught.value).startswith(f"{path} ")
    assert assert_harmless(find.load_embedding, path) is None


# The weights of a model are a stranger's as well.


@pytest.fixture(scope="module")
def model_folder(tiny_model, folder):
    """A model of the VAE's folder alone, its weights' file, and their sound bytes."""
    copy = folder / "vae"
    copy.mkdir()
    (copy / "config.json").write_bytes((tiny_model / "vae/config.json").read_bytes())
    file = copy / "diffusion_pytorch_model.safetensors"
    return DiffusersFolder(folder), file, (tiny_model / "vae" / file.name).read_bytes()


@settings(FEW, max_examples=12)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=6)), max_size=3
    ),
    end=st.none() | st.integers(0, 2000),
)
def test_damaged_weights_give_params_or_one_line(
    tiny_model, model_folder, vae_module, edits, end
):
    source, file, sound = model_folder
    content = bytearray(sound)
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    file.write_bytes(content[:end])
    try:
        load_params(source, "vae", vae_module)
    except errors.UserError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def vae_module(tiny_model):
    return base_model.open_model(str(tiny_model)).family.parts["vae"]


# Pictures


def encoded(kind, mode="RGB"):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 10, 4), np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    picture.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG") else {}))
    return file.getvalue()


SEEDS = {
    "a.jpg": encoded("JPEG"),
    "a.png": encoded("PNG", "RGBA"),
    "b.png": encoded("PNG", "P"),
    "a.gif": encoded("GIF", "P"),
    "a.bmp": encoded("BMP"),
    "a.tif": encoded("TIFF", "CMYK"),
}
if features.check("webp"):
    SEEDS["a.webp"] = encoded("WEBP")


@settings(FEW, max_examples=400)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)),
        max_size=4,
    ),
    end=st.none() | st.integers(1, 2**16),
)
def test_any_bytes_give_a_picture_or_are_named(folder, name, edits, end):
    content = bytearray(SEEDS[name])
    for position, replacement in edits:
        start = position % len(content)
        content[start : start + len(replacement)] = replacement
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    (place / name).write_bytes(content[: end and end % len(content)])
    try:
        read = read_pictures(place, Cropping(8))
    except errors.UserError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert np.shape(read.images) == (1, 8, 8, 3)
        assert all("\n" not in note for note in read.notes)


def png_chunk(kind, body):
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png(width, height, body, *more):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    ends = png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + ends


def bombs():
    """Small files that claim, or unpack to, much."""
    zeros = zlib.compress(bytes(200 * 2**20), 9)
    # A row of zeros is a filter byte and zeros, so 200 MB are 200 MB of pixels.
    claims = {
        "claims.png": png(2**31 - 1, 2**31 - 1, b""),
        "wide.png": png(2**31 - 1, 1, zeros),
        "large.png": png(60_000, 60_000, zeros),
        "text.png": png(8, 8, b"", png_chunk(b"zTXt", b"a\0\0" + zeros)),
        "profile.png": png(8, 8, b"", png_chunk(b"iCCP", b"a\0\0" + zeros)),
    }
    gif = bytearray(SEEDS["a.gif"])
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(SEEDS["a.bmp"])
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    return {**claims, "screen.gif": bytes(gif), "claims.bmp": bytes(bmp)}


# Less than a machine of 4 GB has, and 60 s of CPU; the modules take a part of both.
_READ_BOMBS = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from ti_flax.data import buckets, folder
from ti_flax.runtime import errors
try:
    folder.read_pictures(Path(sys.argv[1]), buckets.Cropping(8))
except errors.UserError as error:
    print(error)
"""


def test_decompression_bombs_are_named_within_bounds(tmp_path):
    place = tmp_path / "bombs"
    place.mkdir()
    for name, content in bombs().items():
        assert len(content) < 2**20
        (place / name).write_bytes(content)
    (place / "z.png").write_bytes(SEEDS["a.png"])
    code = textwrap.dedent(_READ_BOMBS) + "else:\n    print('read')\n"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    # The sound picture is read whatever lies beside it.
    assert (ran.returncode, ran.stdout) == (0, "read\n"), ran.stderr
    notes = read_pictures(place, Cropping(8)).notes
    skipped = {note.split()[1].rstrip(":") for note in notes if "skipped" in note}
    assert {"claims.png", "wide.png", "large.png", "claims.bmp"} <= skipped
