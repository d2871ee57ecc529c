"""torch_zip reads and writes what torch does, and a stranger's file does no harm.

`python tests/test_torch_zip.py`, where torch is installed, records the reference file.
"""

import collections
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ti_flax.pickles import torch_pickle, torch_zip
from ti_flax.runtime.errors import UserError

REFERENCE = Path(__file__).parents[1] / "reference" / "torch_zip" / "nested.pt"

DTYPES = ["float16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8"]


def nested_of_torch(torch):
    """What AUTOMATIC1111 and others save: nesting, parameters, views of one storage."""
    base = torch.arange(24.0).reshape(4, 6) / 8
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(base[:2].clone())},
        "parameters": torch.nn.ParameterDict({"<cat>": torch.nn.Parameter(base[0])}),
        "ordered": collections.OrderedDict(weight=base[3]),
        "views": [base, base.T, base[1:3, ::2], base[2, 3]],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "counts": torch.arange(-2, 3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 6),
        "scalars": ("ü", 500, 2**40, -1, 0.5, True, False, None),
    }


def nested_of_numpy():
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": base[:2]},
        "parameters": {"<cat>": base[0]},
        "ordered": {"weight": base[3]},
        "views": [base, base.T, base[1:3, ::2], base[2, 3]],
        "half": base.astype(np.float16),
        "bfloat16": base.astype(ml_dtypes.bfloat16),
        "counts": np.arange(-2, 3),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 6), np.float32),
        "scalars": ("ü", 500, 2**40, -1, 0.5, True, False, None),
    }


def assert_same(found, expected):
    if isinstance(expected, np.ndarray | np.generic):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
        assert type(found) is type(expected)


def refusal(path: Path) -> str:
    """The one line with which `load` refuses a file."""
    with pytest.raises(UserError) as caught:
        torch_zip.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} ")
    return message.removeprefix(f"{path} ")


def write_zip(path: Path, program: bytes, storage: bytes = bytes(24)) -> Path:
    """A file like torch.save's around any pickle: six float32 in storage "0"."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", program)
        archive.writestr("any/data/0", storage)
        archive.writestr("any/version", "3\n")
    return path


def fragment(value: object) -> bytes:
    """The instructions that push a value: its pickle without PROTO and STOP."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage_program(kind="storage", key="0", length=6) -> bytes:
    return (
        b"("
        + fragment(kind)
        + b"ctorch\nFloatStorage\n"
        + fragment(key)
        + fragment("cpu")
        + fragment(length)
        + b"tQ"
    )


def tensor_program(offset=0, size=(2, 3), stride=(3, 1), storage=None) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())`."""
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage or storage_program())
        + fragment(offset)
        + fragment(size)
        + fragment(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


# Against torch


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "bfloat16"])
def test_torch_reads_what_save_writes_bit_for_bit(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 256, 96, np.uint8)
    values = (bits % 2 == 0) if dtype == "bool" else bits.view(np.dtype(dtype))
    tensors = {
        "<cat>": values[:12].reshape(3, 4),
        "<ünï>_1": values[:5],
        "transposed": values[:6].reshape(2, 3).T,
        "scalar": values[:1].reshape(()),
        "none": values[:0].reshape(0, 7),
    }
    torch_zip.save(tmp_path / "saved.bin", tensors)
    found = torch.load(tmp_path / "saved.bin", weights_only=True)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        tensor = found[name]
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.shape == array.shape
        assert tensor.is_contiguous() and not tensor.requires_grad
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw == array.tobytes()


def test_torch_maps_what_save_writes_into_memory(tmp_path):
    torch = pytest.importorskip("torch")
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    torch_zip.save(tmp_path / "saved.bin", {"<cat>": rows})
    mapped = torch.load(tmp_path / "saved.bin", weights_only=True, mmap=True)
    assert torch.equal(mapped["<cat>"], torch.from_numpy(rows))


def test_load_reads_what_torch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(nested_of_torch(torch), tmp_path / "saved.pt")
    assert_same(torch_zip.load(tmp_path / "saved.pt"), nested_of_numpy())


def test_the_format_before_torch_1_6_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(
        {"<cat>": torch.zeros(3)},
        tmp_path / "old.bin",
        _use_new_zipfile_serialization=False,
    )
    assert "before torch 1.6" in refusal(tmp_path / "old.bin")


# Without torch


def test_load_reads_the_file_torch_recorded():
    assert_same(torch_zip.load(REFERENCE), nested_of_numpy())


def test_views_of_one_storage_share_its_memory():
    whole, transposed, *_ = torch_zip.load(REFERENCE)["views"]
    assert np.shares_memory(whole, transposed)
    assert not whole.flags.writeable


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "bfloat16"])
def test_load_gives_back_what_save_wrote(tmp_path, dtype):
    values = np.arange(6).astype(np.dtype(dtype))
    tensors = {"<cat>": values.reshape(2, 3), "b": values.reshape(2, 3).T, "c": values}
    torch_zip.save(tmp_path / "saved.bin", tensors)
    assert_same(torch_zip.load(tmp_path / "saved.bin"), tensors)


def test_saved_pickle_calls_torch_as_torch_does():
    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            return lambda *arguments: (name, *arguments)

        def persistent_load(self, identity):
            kind, storage, *rest = identity
            return (kind, storage()[0], *rest)

    program, _ = torch_pickle.dumps({"<cat>": np.zeros((2, 3), np.float32)})
    pickletools.dis(program, out=io.StringIO())
    storage = ("storage", "FloatStorage", "0", "cpu", 6)
    hooks = ("OrderedDict",)
    assert Recorder(io.BytesIO(program)).load() == {
        "<cat>": ("_rebuild_tensor_v2", storage, 0, (2, 3), (3, 1), False, hooks)
    }


def test_saved_bytes_depend_on_the_tensors_alone(tmp_path):
    rows = np.ones((2, 3), np.float32)
    for name in ("one.bin", "other.bin"):
        torch_zip.save(tmp_path / name, {"<cat>": rows})
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "other.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.bin") as archive:
        entries = archive.infolist()
        names = {entry.filename: archive.read(entry) for entry in entries}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert not any(data_position(entry) % 64 for entry in entries)
    assert names.pop("archive/data.pkl")
    assert names == {
        "archive/data/0": rows.tobytes(),
        "archive/version": b"3\n",
    }


def data_position(entry: zipfile.ZipInfo) -> int:
    return entry.header_offset + 30 + len(entry.filename) + len(entry.extra)


# Programs that want to run something


class Payload:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def programs_that_run(command: str) -> dict[str, bytes]:
    """Ways in which a pickle runs a shell command in Python's own unpickler."""
    system = Payload(os.system, (command,))
    text = command.encode()
    return {
        "os.system": pickle.dumps(system, 2),
        "nested": pickle.dumps({"a": [1, {"b": (system,)}]}, 2),
        "eval": pickle.dumps(
            Payload(eval, (f"__import__('os').system({command!r})",)), 2
        ),
        "protocol 4": pickle.dumps(system, 4),
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "after a list": b"\x80\x02]cos\nsystem\n" + fragment(command) + b"\x85R\x86.",
    }


@pytest.mark.parametrize("name", programs_that_run("true"))
def test_calls_are_refused_and_not_made(tmp_path, name):
    marker = tmp_path / "executed"
    program = programs_that_run(f"touch {marker}")[name]
    message = refusal(write_zip(tmp_path / "evil.bin", program))
    assert "safetensors" in message
    assert not marker.exists()
    pickle.loads(program)
    assert marker.exists(), "the program does nothing: this test would prove nothing"


def test_a_call_hidden_beside_a_sound_tensor_is_refused(tmp_path):
    marker = tmp_path / "executed"
    program = tensor_program()[:-1] + fragment(Payload(os.system, (f"touch {marker}",)))
    message = refusal(write_zip(tmp_path / "evil.bin", program + b"\x86."))
    assert f"{os.system.__module__}.system" in message
    assert "nothing was executed" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins\neval",
        "builtins\ngetattr",
        "torch\nload",
        "torch._utils\n_rebuild_tensor_v3",
        "torch.storage\n_load_from_bytes",
        "ti_flax.pickles.torch_zip\nload",
        "numpy._core.multiarray\nscalar",
        "\x1b[31m\nred",
        "m" * 5000 + "\nlong",
    ],
)
def test_unknown_names_are_refused_by_name(tmp_path, name):
    program = b"\x80\x02c" + name.encode() + b"\n."
    message = refusal(write_zip(tmp_path / "evil.bin", program))
    assert ascii(name.replace("\n", ".")[:60]) in message
    assert len(message) < 200


def test_attributes_of_functions_are_not_set(tmp_path):
    before = dict(vars(torch_pickle._rebuild_tensor))
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        + fragment({"_parameters": {"__defaults__": None}, "spoilt": 1})
        + b"b."
    )
    refusal(write_zip(tmp_path / "evil.bin", program))
    assert vars(torch_pickle._rebuild_tensor) == before


# Damage and absurd sizes


def test_pickles_cut_short_are_refused_at_every_length(tmp_path):
    program = zipfile.ZipFile(REFERENCE).read("nested/data.pkl")
    for length in range(0, len(program), 5):
        refusal(write_zip(tmp_path / "cut.pt", program[:length]))


def test_the_tensor_of_these_tests_is_sound(tmp_path):
    storage = np.arange(6, dtype=np.float32)
    write_zip(tmp_path / "sound.bin", tensor_program(), storage.tobytes())
    assert_same(torch_zip.load(tmp_path / "sound.bin"), storage.reshape(2, 3))


@pytest.mark.parametrize(
    "shape",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"offset": 0.0},
        {"size": (2**40,), "stride": (1,)},
        {"size": (2, 4)},
        {"size": (-2, -3)},
        {"size": (2, 3), "stride": (3, 2)},
        {"size": (6,), "stride": (-1,), "offset": 5},
        {"size": (10**6, 10**6), "stride": (0, 0)},
        {"size": (2**62, 2**62), "stride": (2**62, 1)},
        {"size": (0, 2**62, 2**62), "stride": (1, 1, 1)},
        {"size": (1,), "stride": (2**70,)},
        {"size": (1,) * 200, "stride": (1,) * 200},
        {"size": (2, 3), "stride": (3,)},
        {"size": "23", "stride": "31"},
        {"size": None},
        {"size": (True, True)},
        {"storage": storage_program(length=7)},
        {"storage": storage_program(length=2**62)},
        {"storage": storage_program(length=-1)},
        {"storage": storage_program(key="1")},
        {"storage": storage_program(key="../../any/data.pkl")},
        {"storage": storage_program(key=0)},
        {"storage": storage_program(kind="stowage")},
        {"storage": fragment("no storage")},
        {"storage": tensor_program(size=(6,), stride=(1,))[2:-1]},
    ],
    ids=lambda shape: str(shape)[:60],
)
def test_shapes_beyond_their_storage_are_refused_before_memory_is_taken(
    tmp_path, shape
):
    path = write_zip(tmp_path / "absurd.bin", tensor_program(**shape))
    tracemalloc.start()
    refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def nested_tuples(depth: int) -> bytes:
    """Each holds the one before twice: its hash and its print take 2**depth steps."""
    return b")" + b"q\x00h\x00\x86" * depth


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02}" + nested_tuples(60) + b"K\x01s.", id="key"),
        pytest.param(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", id="deep key"),
        pytest.param(
            b"\x80\x02(" + fragment("storage") + b"ctorch\nFloatStorage\n"
            + nested_tuples(60) + b"NK\x01tQ.",
            id="storage key",
        ),
        pytest.param(
            b"\x80\x02}}" + fragment("_parameters") + b"]" + nested_tuples(60)
            + b"K\x01\x86asb.",
            id="parameters",
        ),
        pytest.param(b"\x80\x02X\xff\xff\xff\xff.", id="long string"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f.", id="long number"),
        pytest.param(b"\x80\x02r\xff\xff\xff\xff.", id="memo of nothing"),
        pytest.param(b"\x80\x02", id="no end"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x02.", id="no result"),
        pytest.param(b"\x80\x02\xfe.", id="no instruction"),
    ],
)  # fmt: skip
def test_programs_made_to_exhaust_are_refused(tmp_path, program):
    refusal(write_zip(tmp_path / "bomb.bin", program))


def test_a_pickle_longer_than_any_embedding_needs_is_refused(tmp_path):
    program = b"\x80\x02" + b"Nq\x00" * 100_000 + b"."
    assert "300003 bytes" in refusal(write_zip(tmp_path / "long.bin", program))


def test_a_huge_memo_index_costs_nothing(tmp_path):
    path = write_zip(tmp_path / "memo.bin", b"\x80\x02K\x07r\xff\xff\xff\xff.")
    tracemalloc.start()
    assert torch_zip.load(path) == 7
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.fixture(scope="module")
def fuzz_path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzz.bin"


def assert_harmless(path: Path) -> None:
    try:
        torch_zip.load(path)
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=6)), min_size=1)
)
def test_any_file_gives_a_result_or_one_line(fuzz_path, edits):
    data = bytearray(REFERENCE.read_bytes())
    for position, replacement in edits:
        start = position % len(data)
        data[start : start + len(replacement)] = replacement
    fuzz_path.write_bytes(data)
    assert_harmless(fuzz_path)


INSTRUCTIONS = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes),
    *map(fragment, (0, 1, 6, 2**40, -1, 0.5, "0", "storage", "cpu", (2, 3), [], {})),
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch.nn.modules.container\nParameterDict\n",
    b"c__builtin__\nset\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"(",
    b"h\x00",
    b"q\x00",
    storage_program(),
    tensor_program()[2:-1],
]


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(parts=st.lists(st.sampled_from(INSTRUCTIONS), max_size=20))
def test_any_pickle_gives_a_result_or_one_line(fuzz_path, parts):
    assert_harmless(write_zip(fuzz_path, b"\x80\x02" + b"".join(parts) + b"."))


# Zips that torch.save never writes


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "locked.bin", tensor_program())
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusal(path)


def test_a_compressed_zip_is_refused_before_it_grows(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("any/data.pkl", tensor_program())
        archive.writestr("any/data/0", bytes(10**7))
    tracemalloc.start()
    assert "compressed" in refusal(tmp_path / "bomb.bin")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_entries_that_claim_more_than_the_file_are_refused(tmp_path):
    path = write_zip(tmp_path / "claim.bin", tensor_program())
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    assert "claim more bytes" in refusal(path)


def test_entries_that_reach_beyond_the_file_are_refused(tmp_path):
    path = write_zip(tmp_path / "beyond.bin", tensor_program(), bytes(5000))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    claim = len(data) - len(tensor_program()) - len("3\n")
    data[entry + 20 : entry + 28] = struct.pack("<II", claim, claim)
    path.write_bytes(data)
    message = refusal(path)
    assert "damaged" in message and "claim more" not in message


def test_entries_that_overlap_are_refused(tmp_path):
    path = tmp_path / "overlap.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", tensor_program())
        archive.writestr("any/data/0", bytes(10_000))
        archive.filelist += [archive.filelist[1]] * 50
    assert "claim more bytes" in refusal(path)


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", tensor_program())
        archive.filelist += archive.filelist
    assert "two entries" in refusal(path)


@pytest.mark.parametrize("names", [["any/version"], ["a/data.pkl", "b/data.pkl"]])
def test_a_zip_without_one_pickle_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02N.")
    assert "data.pkl" in refusal(tmp_path / "other.zip")


def test_a_big_endian_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "big.bin", "w") as archive:
        archive.writestr("any/data.pkl", tensor_program())
        archive.writestr("any/byteorder", b"big")
    assert "big-endian" in refusal(tmp_path / "big.bin")


def test_what_is_no_zip_is_refused(tmp_path):
    (tmp_path / "text.bin").write_text("a text")
    assert "expected its zip format" in refusal(tmp_path / "text.bin")
    assert "No such file" in refusal(tmp_path / "missing.bin")
    (tmp_path / "legacy.bin").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"and the rest"
    )
    assert "before torch 1.6" in refusal(tmp_path / "legacy.bin")


if __name__ == "__main__":
    import torch

    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    torch.save(nested_of_torch(torch), REFERENCE)
