"""A stranger's embedding file is refused in one line, within 2 s and 1 GB.

Each table is a kind: something out of a file that is called, hashed, multiplied,
printed, copied or counted before anyone has looked at what it is.
"""

import base64
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from ti_flax.formats import registry
from ti_flax.pickles import torch_pickle
from ti_flax.text.embedding import Embedding

SECONDS, MEGABYTES = 2.0, 1024

# The opcodes, by hand: no sound writer makes these programs.


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module, item):
    return f"c{module}\n{item}\n".encode()


def tup(*items):
    return b"(" + b"".join(items) + b"t"


def put(index):
    return b"r" + struct.pack("<I", index)


def get(index):
    return b"j" + struct.pack("<I", index)


def doubled(levels, begin=b"", end=b"\x86"):
    """Each level holds the one before twice; the last is in the memo at 9."""
    step = begin + b"h\x00h\x00" + end + b"q\x00"
    return b")q\x00" + step * levels + put(9)


PAIRS = doubled(60)
LISTS = doubled(60, b"](", b"e")
DEEP = b")" + b"\x85" * 50_000 + put(9)
CYCLE = b"]q\x09h\x09a"
LONG_TEXT = text("a" * 200_000) + put(9)

# torch.save's files


def storage(kind="storage", key="0", length=32, dtype=b""):
    dtype = dtype or name("torch", "FloatStorage")
    kind = kind if isinstance(kind, bytes) else text(kind)
    key = key if isinstance(key, bytes) else text(key)
    return tup(kind, dtype, key, text("cpu"), number(length)) + b"Q"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = name("torch._utils", "_rebuild_parameter")
HOOKS = name("collections", "OrderedDict") + b")R"
LITTLE = tup(number(1), number(32))
STRIDES = tup(number(32), number(1))


def tensor(size=LITTLE, stride=STRIDES, held=None, offset=None):
    held, offset = held or storage(), offset or number(0)
    return REBUILD + tup(held, offset, size, stride, b"\x89", HOOKS) + b"R"


ONES = np.ones(32, np.float32).tobytes()


def in_zip(body, data=ONES):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("a/data/0", data)
    return file.getvalue()


def a1111(before, **fields):
    """What `before` leaves in the memo lies below the dictionary: torch has no POP."""
    items = {"name": text("toy"), "step": number(3), **fields}
    body = b"".join(text(key) + value for key, value in items.items())
    rows = text("string_to_param") + b"}(" + text("*") + tensor() + b"u"
    return in_zip(before + b"}(" + rows + body + b"u")


BIG = tensor(
    tup(number(10**6)),
    tup(number(1)),
    storage(length=10**6, dtype=name("torch", "ByteStorage")),
)
FROM_NUMPY = name("torch._utils", "_rebuild_device_tensor_from_numpy")
FROM_CPU = name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
ENCODE = name("_codecs", "encode")
CALLS = {
    "array": PARAMETER + b"q\x01" + BIG + b"q\x02" + b"h\x01h\x02R" * 2000,
    "array of a new object": PARAMETER + BIG + b"\x81",
    "list": PARAMETER + b"](" + b"N" * 3 + b"eR",
    "dictionary": PARAMETER + b"}" + b"R",
    "text": PARAMETER + text("abc") + b"R",
    "number": PARAMETER + number(3) + b"R",
    "none": PARAMETER + b"NR",
    "too few": PARAMETER + tensor() + b"\x85R",
    "too many": PARAMETER + b"(" + tensor() + b"N" * 1000 + b"tR",
    "parameter of a list": PARAMETER + tup(b"]", b"\x88", HOOKS) + b"R",
    "many for a dictionary": HOOKS[:-2] + PAIRS + b"R",
    "call of a type": name("torch", "FloatStorage") + b")R",
    "call of a text": text("abc") + b")R",
    "call of a tensor": tensor() + b")R",
    "call of a dictionary": b"})R",
    "device without a tensor": FROM_NUMPY
    + tup(b"N", name("torch", "float32"), text("mps:0"), b"\x89") + b"R",
    "device with a copy of nothing": FROM_CPU + PAIRS + b"R",
    "encode of a list": ENCODE + tup(b"]", text("latin1")) + b"R",
    "encode in another way": ENCODE + tup(text("a"), text("zlib")) + b"R",
}  # fmt: skip
COLLIDING = b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 9000))
KEYS = {
    "pairs": b"}" + PAIRS + b"Ns",
    "deep": b"}" + DEEP + b"Ns",
    "list": b"}]Ns",
    "tensor": b"}" + tensor() + b"Ns",
    "function": b"}" + REBUILD + b"Ns",
    "dtype": b"}" + name("torch", "float32") + b"Ns",
    "colliding": b"}(" + COLLIDING + b"u",
    "negative": b"}" + number(-5) + b"Ns",
    "fraction": b"}G" + struct.pack(">d", float("nan")) + b"Ns",
    "no pair": b"}(" + text("a") + b"u",
    "no dictionary": b"]" + text("a") + b"Ns",
}  # fmt: skip
SHAPES = {
    "text": tensor(tup(text("a"), number(10**9))),
    "pairs": tensor(tup(PAIRS, number(1))),
    "list": tensor(b"](" + number(1) + b"e"),
    "long number": tensor(tup(number(2**2000), number(1))),
    "many long numbers": tensor(b"(" + number(2**2000) * 5000 + b"t"),
    "many dimensions": tensor(b"(" + number(1) * 30_000 + b"t"),
    "truth": tensor(tup(b"\x88", number(32))),
    "negative": tensor(tup(number(-1), number(-32))),
    "stride of text": tensor(stride=tup(text("a"), number(1))),
    "stride long": tensor(stride=tup(number(2**500), number(1))),
    "offset of pairs": tensor(offset=PAIRS),
    "offset long": tensor(offset=number(2**100)),
    "tensor for a storage": tensor(held=tensor()),
    "kind of pairs": tensor(held=storage(kind=PAIRS)),
    "kind of a tensor": tensor(held=storage(kind=BIG)),
    "key of lists": tensor(held=storage(key=LISTS)),
    "dtype of text": tensor(held=storage(dtype=text("f4"))),
    "id of lists": tensor(held=LISTS + b"Q"),
    "id of a tensor": tensor(held=tensor() + b"Q"),
    "id too short": tensor(held=b")Q"),
    "length": tensor(held=storage(length=2**62)),
}
ITEMS = b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(9000))
PARAMETERS = b"}(" + ITEMS + b"uq\x01}" + text("_parameters") + b"h\x01sq\x02"
COPIES = {
    "parameters": PARAMETERS + b"}h\x02b" * 8000,
    "encoded": ENCODE + b"q\x01" + tup(text("a" * 10**6), text("latin1")) + b"q\x02"
    + b"h\x01h\x02R" * 9000,
    "parameters of pairs": b"}}" + text("_parameters") + PAIRS + b"sb",
    "state of pairs": b"}" + PAIRS + b"b",
    "state for a tensor": tensor() + b"}b",
}  # fmt: skip
STEPS = {
    "steps": b"N" * 200_000,
    "lists": b"]" * 200_000,
    "dictionaries": b"}" * 10**6,
    "marks": b"(" * 10**6,
    "memo": b"N" + b"".join(put(k) for k in range(100_000)),
    "deep": b")" + b"\x85" * 10**6,
    "numbers": number(2**2000) * 70_000,
}
PRINTED = {"lists": LISTS, "pairs": PAIRS, "deep": DEEP, "cycle": CYCLE,
           "texts": LONG_TEXT + b"0](" + get(9) * 5000 + b"e" + put(9)}  # fmt: skip
FIELDS = ("step", "name", "sd_checkpoint", "sd_checkpoint_name", "ti_flax", "else")


def torch_files():
    for kind, bodies in {
        "call": {key: b"](" + body + b"e" for key, body in CALLS.items()},
        "shape": {key: b"}" + text("a") + body + b"s" for key, body in SHAPES.items()},
        "key": KEYS,
        "copy": COPIES,
        "steps": STEPS,
    }.items():
        for key, body in bodies.items():
            yield f"{kind}: {key}", in_zip(body, bytes(10**6))
    for key, before in PRINTED.items():
        for field in FIELDS:
            yield f"{field}: {key}", a1111(before, **{field: get(9)})


def many_entries():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        entry = archive.filelist[0]
        archive.filelist += [entry] * 60_000
    return file.getvalue()


# numpy's


def in_npy(body, protocol=4):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    start = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header
    return start + b"\x80" + bytes([protocol]) + body + b"."


def array(state, module="numpy._core.multiarray"):
    made = name(module, "_reconstruct") + tup(
        name("numpy", "ndarray"), tup(number(0)), text("b")
    )
    return made + b"R" + state + b"b"


def dtype(kind="f4", order="<", state=None):
    kind = kind if isinstance(kind, bytes) else text(kind)
    order = order if isinstance(order, bytes) else text(order)
    state = state or tup(
        number(3), order, b"N", b"N", b"N", number(-1), number(-1), number(0)
    )
    return name("numpy", "dtype") + tup(kind, b"\x89", b"\x88") + b"R" + state + b"b"


def numbers(shape=None, kind=None, data=None, column_major=b"\x89"):
    data = data or b"B" + struct.pack("<I", len(ONES)) + ONES
    shape = shape or tup(number(32))
    return array(tup(number(1), shape, kind or dtype(), column_major, data))


def word(inner, outer_shape=b")", objects=None):
    objects = objects or b"]}(" + text("<toy>") + inner + b"ua"
    return array(tup(number(1), outer_shape, dtype("O8", "|"), b"\x89", objects))


BIG_BYTES = b"B" + struct.pack("<I", 4 * 10**6) + bytes(4 * 10**6)
SWAPPED = (
    tup(number(1), tup(number(10**6)), dtype(order=">"), b"\x89", BIG_BYTES) + b"q\x02"
)
EMPTY_ARRAY = (
    name("numpy._core.multiarray", "_reconstruct") + tup(b"N", b"N", b"N") + b"R"
)
NPY = {
    "dtype: pairs": word(numbers(kind=dtype(PAIRS))),
    "dtype: lists": word(numbers(kind=dtype(LISTS))),
    "dtype: none": word(numbers(kind=dtype(b"N"))),
    "dtype: number": word(numbers(kind=dtype(number(4)))),
    "dtype: array": word(numbers(kind=dtype(numbers()))),
    "dtype: long": word(numbers(kind=dtype("f" * 10**6))),
    "dtype: whole numbers": word(numbers(kind=dtype("i8"))),
    "dtype: not one": word(numbers(kind=PAIRS)),
    "order: pairs": word(numbers(kind=dtype(order=PAIRS))),
    "order: long": word(numbers(kind=dtype(order="<" * 10**6))),
    "order: state": word(numbers(kind=dtype(state=LISTS))),
    "order: no state": word(numbers(kind=dtype(state=b")"))),
    "shape: text": word(numbers(tup(number(3 * 10**9), text("a")))),
    "shape: tuple": word(numbers(tup(number(10**9), tup(b"N")))),
    "shape: long numbers": word(numbers(b"(" + number(2**2000) * 40_000 + b"t")),
    "shape: pairs": word(numbers(PAIRS)),
    "shape: cycle": word(numbers(CYCLE)),
    "shape: none": word(numbers(b"N")),
    "shape: other": word(numbers(tup(number(31)))),
    "shape: zero and more": word(numbers(tup(number(0), number(2**39), number(2**39)))),
    "order of axes: array": word(numbers(column_major=numbers())),
    "order of axes: pairs": word(numbers(column_major=PAIRS)),
    "data: text": word(numbers(data=text("a" * 128))),
    "data: list": word(numbers(data=b"]")),
    "data: array": word(numbers(data=numbers())),
    "state: array": word(array(numbers())),
    "state: short": word(array(b")")),
    "outer: shape": word(numbers(), outer_shape=tup(number(1))),
    "outer: shape of an array": word(numbers(), outer_shape=numbers()),
    "outer: many": word(numbers(), objects=b"](NNe"),
    "outer: lists": word(numbers(), objects=LISTS),
    "outer: itself": b"]" + put(8) + word(numbers(), objects=get(8)),
    "name: lists": LISTS + text("x") + b"\x93",
    "name: second": text("x") + LISTS + b"\x93",
    "name: number": number(1) + number(2) + b"\x93",
    "name: long": text("x" * 10**6) + text("y") + b"\x93",
    "copy: swapped": SWAPPED + (EMPTY_ARRAY + b"h\x02b") * 4000,
    "steps: lists": b"]" * 10**6,
    "steps: frames": (b"\x95" + struct.pack("<Q", 1) + b"N") * 100_000,
    "length: bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "length: text": b"\x8d" + struct.pack("<Q", 2**62),
    "length: frame": b"\x95" + struct.pack("<Q", 2**62),
}  # fmt: skip

# JSON's


def in_safetensors(header, numbers=bytes(128)):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + numbers


def bundle(offsets, **entry):
    made = {"dtype": "F32", "shape": [1, 32], "data_offsets": offsets, **entry}
    return in_safetensors({"bundle_emb.a.clip_l": made}, b"")


NO_ROWS = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def tensors(count):
    return in_safetensors({f"t{k}": NO_ROWS for k in range(count)}, b"")


BUNDLES = {
    **{
        f"offsets: {str(offsets)[:40]}": bundle(offsets)
        for offsets in (
            [2**62, 2**62 + 128], [-128, 0], [0, 2**62], [128, 0], [0.5, 128.5],
            ["0", "128"], [[0], [128]], [None, None], 5, [0], [0, 1, 2], {}, "01",
            [10**400, 10**400 + 128], [17 * 2**20, 17 * 2**20 + 128], [False, True],
        )
    },
    "shape": bundle([0, 128], shape=[2**62, 2**62]),
    "dtype": bundle([0, 128], dtype=["F32"]),
    "long bundle": in_safetensors(
        {f"bundle_emb.{k}.clip_l": NO_ROWS for k in range(60_000)},
        b"",
    ),
    "most names": in_safetensors(
        b'{"bundle_emb.a.clip_l":[]' + b"".join(b',"%x":[]' % k for k in range(620_000))
        + b"}",
        b"",
    ),
}  # fmt: skip


SAFETENSORS = {
    "many tensors": tensors(200_000),
    "fewer tensors": tensors(10_000),
    "long header": in_safetensors(b'{"a":"' + b"a" * 15 * 10**6 + b'"}'),
    "lists": in_safetensors(b'{"a":' + b"[" * 10**6),
}


def in_png(chunk, *more):
    def part(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
    body = b"sd-ti-embedding\0" + base64.b64encode(data)
    return b"\x89PNG\r\n\x1a\n" + b"".join(more) + part(b"tEXt", body)


def a1111_json(rows=None, **fields):
    rows = {"TORCHTENSOR": [[1.0] * 32]} if rows is None else rows
    return in_png({"string_to_param": {"*": rows}, "name": "toy", "step": 1, **fields})


def json_levels(count):
    value = 1
    for _ in range(count):
        value = [value]
    return value


TEN = json.dumps(list(range(10**6))).encode()
PNG = {
    "text": a1111_json({"TORCHTENSOR": "1" * 1000}),
    "dictionary": a1111_json({"TORCHTENSOR": {"a": 1}}),
    "ragged": a1111_json({"TORCHTENSOR": [[1.0], [1.0, 2.0]]}),
    "many levels": a1111_json({"TORCHTENSOR": json_levels(100)}),
    "tensor of a tensor": in_png(b'{"TORCHTENSOR":' * 500 + TEN + b"}" * 500),
    "tensor in a list": in_png(b'{"TORCHTENSOR":[' * 60 + TEN + b"]}" * 60),
    "tensor of words": a1111_json({"TORCHTENSOR": ["1.5"] * 32}),
    "step": a1111_json(step=json_levels(300)),
    "name": a1111_json(name=json_levels(300)),
    "lists": in_png(b"[" * 10**6),
    "many lists": in_png(b"[" + b"[]," * 10**6 + b"[]]"),
    "many dictionaries": in_png(b"[" + b"{}," * 10**6 + b"{}]"),
    "most lists": in_png(b"[" + b"[]," * 2_097_000 + b"[]]"),
    "most tensors": in_png(b'{"TORCHTENSOR":[' + b"[1]," * 1_572_000 + b"[1]]}"),
    "most numbers": in_png(b'{"TORCHTENSOR":[' + b"1e9," * 1_572_000 + b"1]}"),
    "long": in_png(b'"' + b"a" * 10**7 + b'"'),
    "long text": a1111_json(step="a" * 2 * 10**6),
    "long number": in_png(b'{"step":' + b"9" * 10**6 + b"}"),
    "chunks": in_png({}, bytes(12) * 10**6),
}

WORDS = (
    "\x1b[31mred", "\x9b31m", "two\nlines", "two\rlines", "nul\0", "tab\t", "\x7f",
    "a\u2028b", "a\u2029b", "\u202etac", "\u2066cat", "\ud800", "", " ", "w" * 300,
)  # fmt: skip
TOKENS = {
    f"{ascii(token)[:20]} in {kind}": (
        in_zip(b"}" + text(token) + tensor() + b"s")
        if kind == "torch"
        else a1111_json(name=token)
        if kind == "png"
        else in_npy(word(numbers()).replace(text("<toy>"), text(token)))
    )
    for token in WORDS
    for kind in ("torch", "png", "npy")
}

FILES = {
    **{f"{key}.bin": content for key, content in torch_files()},
    "entries.bin": many_entries(),
    **{f"{key}.npy": in_npy(body) for key, body in NPY.items()},
    "header.npy": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + b"{",
    **{f"{key}.safetensors": content for key, content in SAFETENSORS.items()},
    **{f"{key}.long": content for key, content in BUNDLES.items()},
    **{f"{key}.png": content for key, content in PNG.items()},
    **{f"{key}.word": content for key, content in TOKENS.items()},
}

# Too long for an embedding: of such a file the header alone is read.
LONG_FILE_BYTES = 17 * 2**20

_INSPECT = """
import json, resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
from ti_flax.formats import describe
from ti_flax.runtime import errors
for file in sorted(Path(sys.argv[1]).iterdir(), key=lambda file: int(file.name)):
    start = time.process_time()
    try:
        told, refused = describe.describe_embedding(file=str(file)), False
    except errors.UserError as error:
        told, refused = str(error), True
    except BaseException as error:
        told, refused = f"{type(error).__name__}: {error}"[:300], None
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
    print(json.dumps([refused, told[:2000], len(told), seconds, peak]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What `inspect` makes of each file, all in one process that has limits."""
    folder = tmp_path_factory.mktemp("hostile")
    for index, (key, content) in enumerate(FILES.items()):
        (folder / str(index)).write_bytes(content)
        if key.endswith(".long"):
            os.truncate(folder / str(index), LONG_FILE_BYTES)
    code = [sys.executable, "-c", _INSPECT, str(folder)]
    ran = subprocess.run(code, capture_output=True, text=True)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == len(FILES), f"ended at {list(FILES)[len(lines)]}: {ran.stderr}"
    return dict(zip(FILES, lines, strict=True))


@pytest.mark.parametrize("file", FILES)
def test_a_hostile_file_is_refused_in_one_short_line_within_bounds(outcomes, file):
    refused, told, length, seconds, megabytes = outcomes[file]
    assert refused, told
    assert "\n" not in told and told.isprintable() and length < 500
    assert seconds < SECONDS
    assert megabytes < MEGABYTES


def test_the_page_states_these_bounds():
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    assert f"{SECONDS:.0f} s of CPU and {MEGABYTES} MiB" in page.read_text()


# What must still be read, bit for bit.

ROWS = np.random.default_rng(0).standard_normal((2, 128)).astype(np.float32)


def pickled(value, protocol=2):
    """The opcodes of a pickle, without PROTO and STOP."""
    return pickle.dumps(value, protocol)[2:-1]


def on_device(how, held):
    arguments = tup(held, name("torch", "float32"), text("mps:0"), b"\x89")
    return name("torch._utils", how) + arguments + b"R"


NUMPY_ROWS = pickled(ROWS)
CPU_ROWS = tensor(
    tup(number(2), number(128)), tup(number(128), number(1)), storage(length=256)
)


@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
@pytest.mark.parametrize(
    ("how", "held"),
    [
        ("_rebuild_xla_tensor", NUMPY_ROWS),
        ("_rebuild_device_tensor_from_numpy", NUMPY_ROWS),
        (
            "_rebuild_device_tensor_from_numpy",
            NUMPY_ROWS.replace(b"numpy._core", b"numpy.core"),
        ),
        ("_rebuild_device_tensor_from_numpy", pickled(ROWS.astype(">f4"))),
        ("_rebuild_device_tensor_from_numpy", pickled(np.asfortranarray(ROWS))),
        ("_rebuild_device_tensor_from_cpu_tensor", CPU_ROWS),
    ],
    ids=["xla", "numpy", "numpy 1", "big-endian", "columns", "cpu tensor"],
)
def test_rows_that_were_trained_on_another_device_are_read(tmp_path, how, held, layout):
    body = on_device(how, held)
    if layout == "a1111":
        body = text("string_to_param") + b"}" + text("*") + body + b"s"
        body = b"}(" + body + text("name") + text("<toy>") + b"u"
    else:
        body = b"}" + text("<toy>") + body + b"s"
    (tmp_path / "toy.pt").write_bytes(in_zip(body, ROWS.tobytes()))
    found = registry.read(tmp_path / "toy.pt")
    assert (found.format, found.embedding.token) == (layout, "<toy>")
    assert found.embedding.rows["text_encoder"].tobytes() == ROWS.tobytes()


# modules/safe.py of AUTOMATIC1111 1.6.
ALLOWED_ENTRY = re.compile(r"[^/]+/((data/\d+)|version|(data\.pkl))")
WRITTEN = [
    ("a1111", "a.pt"),
    ("diffusers", "d.bin"),
    ("diffusers-flat", "f.bin"),
    ("kohya", "k.pt"),
    ("rinongal", "r.pt"),
]


@pytest.mark.parametrize(("layout", "file"), WRITTEN)
def test_automatic1111_allows_every_entry_of_the_zip(tmp_path, layout, file):
    registry.write(
        tmp_path / file, layout, Embedding("<toy>", {"text_encoder": ROWS[:1]})
    )
    entries = zipfile.ZipFile(tmp_path / file).namelist()
    # The program, the version and the rows; of the original code, a token's id, too.
    assert len(entries) == 3 + (layout == "rinongal")
    assert all(map(ALLOWED_ENTRY.fullmatch, entries)), entries


@pytest.mark.parametrize(("layout", "file"), WRITTEN)
def test_torch_loads_the_zip_as_little_endian(tmp_path, layout, file):
    torch = pytest.importorskip("torch")
    registry.write(
        tmp_path / file, layout, Embedding("<toy>", {"text_encoder": ROWS[:1]})
    )
    data = torch.load(tmp_path / file, weights_only=layout != "rinongal")
    rows = next(iter(data.get("string_to_param", data).values()))
    assert rows.detach().numpy().tobytes() == ROWS[:1].tobytes()


def test_equal_values_give_equal_pickles_whatever_objects_they_are():
    word = "".join(["<to", "y>"])
    rows = np.ones((1, 3), np.float32)
    one, _ = torch_pickle.dumps({"<toy>": rows, "name": "<toy>", "step": 300})
    other, _ = torch_pickle.dumps({word: rows.copy(), "name": "<toy>", "step": 300})
    assert one == other
