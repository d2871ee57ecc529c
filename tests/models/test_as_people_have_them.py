"""Models as people have them: variants of some parts, .bin, shards, float8, lists."""

import json
import logging
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ti_flax.models import base_model, safetensors_weights, weight_files
from ti_flax.pickles import mapped_zip, pickle_machine, torch_zip
from ti_flax.runtime.errors import UserError

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def read(folder: Path, part: str, variant: str | None = None) -> Tensors:
    source = base_model.open_model(str(folder), variant=variant).source
    return {tensor.key: tensor.read() for tensor in source.tensors(part)}


def assert_same(ours: Tensors, expected: Tensors) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(ours[key], tensor, strict=True)


# Variants


def half(path: Path, name: str) -> None:
    """The same weights as float16, under another name beside them."""
    tensors = {key: value.astype(np.float16) for key, value in load_file(path).items()}
    save_file(tensors, path.with_name(name))


D, T = "diffusion_pytorch_model", "model"
CHOICES: list[tuple[str, list[str], str | None, str | None]] = [
    # part, what is there, variant asked for, what is read
    ("unet", [f"{D}.safetensors"], None, f"{D}.safetensors"),
    ("unet", [f"{D}.safetensors", f"{D}.bin"], None, f"{D}.safetensors"),
    ("unet", [f"{D}.fp16.safetensors", f"{D}.bin"], None, f"{D}.bin"),
    ("unet", [f"{D}.fp16.safetensors"], None, f"{D}.fp16.safetensors"),
    ("unet", [f"{D}.fp16.bin"], None, f"{D}.fp16.bin"),
    ("unet", [f"{D}.fp16.bin", f"{D}.non_ema.bin"], None, None),
    ("unet", [f"{D}.fp16.safetensors", f"{D}.non_ema.bin"], None, None),
    (
        "unet",
        [f"{D}.fp16.safetensors", f"{D}.fp16.bin"],
        None,
        f"{D}.fp16.safetensors",
    ),
    ("unet", [f"{D}.safetensors"], "fp16", f"{D}.safetensors"),
    (
        "unet",
        [f"{D}.safetensors", f"{D}.fp16.safetensors"],
        "fp16",
        f"{D}.fp16.safetensors",
    ),
    ("unet", [f"{D}.safetensors", f"{D}.fp16.bin"], "fp16", f"{D}.fp16.bin"),
    ("unet", [f"{D}.bf16.safetensors"], "fp16", None),
    ("unet", [f"{D}.bin"], "non_ema", f"{D}.bin"),
    ("unet", [f"{D}.safetensors.index.json"], None, f"{D}.safetensors.index.json"),
    (
        "unet",
        [f"{D}.safetensors.index.fp16.json", f"{D}.fp16-00001-of-00002.safetensors"],
        None,
        f"{D}.safetensors.index.fp16.json",
    ),
    ("unet", [f"{D}.bin.index.json"], None, f"{D}.bin.index.json"),
    ("unet", [f"{D}-00001-of-00002.safetensors"], None, None),
    ("unet", ["flax_model.msgpack", "model.onnx", "config.json"], None, None),
    ("unet", ["model.safetensors"], None, None),
    ("unet", [], None, None),
    ("vae", [f"{D}.bin"], None, f"{D}.bin"),
    (
        "text_encoder",
        [f"{T}.safetensors", "pytorch_model.bin"],
        None,
        f"{T}.safetensors",
    ),
    ("text_encoder", ["pytorch_model.bin"], None, "pytorch_model.bin"),
    ("text_encoder", ["pytorch_model.fp16.bin"], None, "pytorch_model.fp16.bin"),
    (
        "text_encoder",
        ["pytorch_model.bin.index.json"],
        None,
        "pytorch_model.bin.index.json",
    ),
    ("text_encoder", [f"{D}.safetensors"], None, None),
    ("text_encoder_2", [f"{T}.fp16.safetensors"], "fp16", f"{T}.fp16.safetensors"),
]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: f"{case[1]} {case[2]}"[:60])
def test_the_weights_of_a_part_are_chosen(
    case: tuple[str, list[str], str | None, str | None],
) -> None:
    part, names, variant, expected = case
    chosen = weight_files.choose(part, names, variant)
    assert (chosen and chosen.name) == expected


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_variant_of_one_part_goes_with_the_plain_rest(
    folder: Path, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read(folder, "vae")
    half(folder / UNET, f"diffusion_pytorch_model.{variant}.safetensors")
    with caplog.at_level(logging.INFO, "ti_flax"):
        assert read(folder, "unet", variant)["conv_in.bias"].dtype == np.float16
        assert not caplog.messages
        assert_same(read(folder, "vae", variant), expected)
    [line] = caplog.messages
    assert line == (
        f"vae: no weights of variant {variant}, reading "
        "diffusion_pytorch_model.safetensors"
    )
    # A part without plain files is read, too: nobody can be in doubt.
    (folder / UNET).unlink()
    assert_same(read(folder, "text_encoder", variant), read(folder, "text_encoder"))
    assert read(folder, "unet", variant)["conv_in.bias"].dtype == np.float16


def test_the_only_variant_is_read_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (UNET, TEXT, VAE):
        path = folder / name
        half(path, f"{path.stem}.fp16.safetensors")
        path.unlink()
    with caplog.at_level(logging.INFO, "ti_flax"):
        assert read(folder, "unet")["conv_in.bias"].dtype == np.float16
    assert caplog.messages == [
        "unet: no weights without a variant, reading "
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    model = base_model.open_model(str(folder))
    asked = base_model.open_model(str(folder), variant="fp16")
    assert model.fingerprint() == asked.fingerprint()


def test_of_several_variants_one_has_to_be_named(folder: Path) -> None:
    for variant in ("fp16", "non_ema"):
        half(folder / UNET, f"diffusion_pytorch_model.{variant}.safetensors")
    (folder / UNET).unlink()
    with pytest.raises(UserError) as raised:
        read(folder, "unet")
    assert "; set variant to 'fp16' or 'non_ema'" in str(raised.value)


def test_a_variant_that_no_part_has_is_a_mistake(folder: Path) -> None:
    with pytest.raises(
        UserError, match="no part of the model has files of variant 'fp61'"
    ):
        read(folder, "unet", "fp61")


# torch's files


def to_bin(path: Path, change: Callable[[Tensors], object] = dict) -> Path:
    """The file as torch.save writes it, instead of the safetensors."""
    stem = {"model": "pytorch_model"}.get(path.stem, path.stem)
    torch_zip.save(path.with_name(f"{stem}.bin"), change(load_file(path)))
    path.unlink()
    return path.with_name(f"{stem}.bin")


@pytest.mark.parametrize("name", [UNET, TEXT, VAE])
@pytest.mark.parametrize(
    "change",
    [dict, lambda tensors: {"state_dict": tensors, "global_step": 5, "x": [None]}],
    ids=["flat", "state_dict"],
)
def test_bin_is_read_as_safetensors_is(
    folder: Path, name: str, change: Callable[[Tensors], object]
) -> None:
    part = name.split("/")[0]
    expected = read(folder, part)
    to_bin(folder / name, change)
    assert_same(read(folder, part), expected)


def test_a_folder_of_bin_alone_is_a_model(folder: Path) -> None:
    expected = base_model.open_model(str(folder)).load("unet")
    for name in (UNET, TEXT, VAE):
        to_bin(folder / name)
    ours = base_model.open_model(str(folder)).load("unet")
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bin_that_torch_wrote_is_read(folder: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        key: torch.tensor(value).to(getattr(torch, dtype))
        for key, value in load_file(folder / UNET).items()
    }
    # A view, a transposed one and a parameter, as state dictionaries may have.
    shared = torch.stack([tensors["conv_in.bias"], tensors["conv_in.bias"]])
    key = "time_embedding.linear_1.weight"
    tensors |= {
        "conv_in.bias": shared[1],
        key: tensors[key].T.contiguous().T,
        "conv_out.bias": torch.nn.Parameter(tensors["conv_out.bias"]),
    }
    torch.save(tensors, folder / UNET.replace("safetensors", "bin"))
    (folder / UNET).unlink()
    ours = read(folder, "unet")
    assert ours.keys() == tensors.keys()
    for key, tensor in tensors.items():
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(ours[key].astype(np.float32), expected)


def test_a_checkpoint_of_lightning_is_read_without_its_classes(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    torch_zip.save(tmp_path / "sound.ckpt", {"state_dict": {"a": rows}, "epoch": 3})
    with zipfile.ZipFile(tmp_path / "sound.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = entries["archive/data.pkl"]
    callbacks = (
        b"X\x09\x00\x00\x00callbacks}cpytorch_lightning.callbacks.model_checkpoint\n"
        b"ModelCheckpoint\n}X\x0a\x00\x00\x00best_scoreNsss"
    )
    # Before the last SETITEMS of the outer dictionary.
    assert program.endswith(b"u.")
    entries["archive/data.pkl"] = program[:-2] + callbacks[:-1] + b"u."
    with zipfile.ZipFile(tmp_path / "all.ckpt", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    content = mapped_zip.load(tmp_path / "all.ckpt")
    np.testing.assert_array_equal(content["state_dict"]["a"], rows)
    assert content["callbacks"] == {"ModelCheckpoint": {"best_score": None}}


class Runs:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def zip_of(path: Path, program: bytes, **settings: Any) -> None:
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", b"\0" * 4)


def many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(33_000):
            archive.writestr(f"archive/data/{number:0300}", b"")


def much_work(path: Path) -> None:
    program = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.NONE * 30_000
    zip_of(path, program + pickle.STOP)


def long_program(path: Path) -> None:
    zip_of(path, b"\0" * (17 * 2**20))


def moved_tensor(path: Path) -> None:
    """A tensor whose local header is not where the directory says."""
    torch_zip.save(path, {"a": np.zeros(4, np.float32)})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    data[entry + 42 : entry + 46] = struct.pack("<I", 3)
    path.write_bytes(data)


def legacy(path: Path) -> None:
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"rest")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "runs a command": (
        lambda path: zip_of(path, pickle.dumps(Runs(), 2)),
        "asks for '__builtin__.print', which no model needs; nothing was executed",
    ),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "HTML": (lambda path: path.write_bytes(b"<!DOCTYPE"), "is no file of torch.save"),
    "before torch 1.6": (legacy, "is in torch.save's format from before torch 1.6"),
    "compressed": (
        lambda path: zip_of(path, b"N.", compression=zipfile.ZIP_DEFLATED),
        "is a compressed zip",
    ),
    "many entries": (many_entries, "is no model: it has more than 32768 entries"),
    "much work": (much_work, "takes more than 16384 steps"),
    "long program": (long_program, "is no model: its pickle has more than 16777216"),
    # By zipfile itself from Python 3.11.8 on, by us before.
    "moved tensor": (moved_tensor, "damaged"),
    "a list": (lambda path: torch_zip.save(path, None), "found a NoneType"),
    "no dictionary of tensors": (
        lambda path: torch_zip.save(path, {"state_dict": "\x1b[31m" * 99}),
        r"found a state_dict that is '\x1b[31m",
    ),
    "safetensors by another name": (
        lambda path: save_file({"a": np.zeros(2, np.float32)}, path),
        "is no file of torch.save",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_bin_is_told(
    folder: Path,
    kind: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two million steps take their time, a hundredth of them shows the same.
    fewer = pickle_machine.MODEL._replace(steps=2**14)
    monkeypatch.setattr(pickle_machine, "MODEL", fewer)
    (folder / UNET).unlink()
    path = folder / UNET.replace("safetensors", "bin")
    write, told = HOSTILE[kind]
    write(path)
    with pytest.raises(UserError) as raised:
        read(folder, "unet")
    line = str(raised.value)
    assert line.startswith(f"{path}") and told in line
    assert line.isprintable() and len(line.removeprefix(str(path))) < 320
    assert capsys.readouterr().out == ""


def test_any_bin_cut_short_is_told(folder: Path) -> None:
    path = to_bin(folder / UNET)
    whole = path.read_bytes()
    for length in (1, 29, 100, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut short|is no file|damaged"):
            read(folder, "unet")


# Shards


def to_shards(path: Path, suffix: str, shard: str, index: str) -> None:
    """The weights as two files; `shard` and `index` are names of them."""
    tensors = load_file(path)
    keys = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = shard.format(number)
        write = (
            save_file if suffix == "safetensors" else lambda t, p: torch_zip.save(p, t)
        )
        write({key: tensors[key] for key in part}, path.with_name(name))
        weight_map |= dict.fromkeys(part, name)
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    path.with_name(index).write_text(json.dumps(content))
    path.unlink()


P = "pytorch_model"
OF_2 = "-0000{}-of-00002"
SHARDS = [
    (UNET, "safetensors", f"{D}{OF_2}.safetensors", f"{D}.safetensors.index.json"),
    (
        UNET,
        "safetensors",
        f"{D}.fp16{OF_2}.safetensors",
        f"{D}.safetensors.index.fp16.json",
    ),
    # As diffusers wrote it first.
    (
        UNET,
        "safetensors",
        f"{D}{OF_2}.fp16.safetensors",
        f"{D}.safetensors.index.fp16.json",
    ),
    (UNET, "bin", f"{D}{OF_2}.bin", f"{D}.bin.index.json"),
    (TEXT, "safetensors", f"{T}{OF_2}.safetensors", f"{T}.safetensors.index.json"),
    (TEXT, "bin", f"{P}{OF_2}.bin", f"{P}.bin.index.json"),
]


@pytest.mark.parametrize("case", SHARDS, ids=lambda case: case[2])
def test_shards_are_read_as_one_file(
    folder: Path, case: tuple[str, str, str, str]
) -> None:
    name, suffix, shard, index = case
    part = name.split("/")[0]
    expected = read(folder, part)
    to_shards(folder / name, suffix, shard, index)
    assert_same(read(folder, part), expected)
    # Of a repository the same files are asked for.
    chosen = weight_files.choose(part, [index, shard.format(1)], None)
    assert chosen is not None and chosen.sharded
    from huggingface_hub.utils import filter_repo_objects

    names = [f"{part}/{file.name}" for file in (folder / part).iterdir()]
    patterns = weight_files.patterns(f"{part}/", chosen)
    assert set(filter_repo_objects(names, allow_patterns=patterns)) == {
        f"{part}/{n}" for n in (index, shard.format(1), shard.format(2))
    }


# Types of numbers

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def write_safetensors(path: Path, tensors: Tensors, dtype: str) -> None:
    """By the format's own rule: numpy's writer knows no float8."""
    header, parts, end = {}, [], 0
    for key, tensor in tensors.items():
        data = tensor.astype(DTYPES[dtype]).tobytes()
        offsets = [end, end + len(data)]
        header[key] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_floating_point_loads_as_the_numbers_it_is(
    folder: Path, dtype: str
) -> None:
    tensors = load_file(folder / VAE)
    write_safetensors(folder / VAE, tensors, dtype)
    ours = base_model.open_model(str(folder)).load("vae")
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    kernel = tensors["decoder.conv_in.weight"].astype(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(
        ours["decoder"]["conv_in"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BF16", "F16"])
def test_what_torch_wrote_is_read_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    import safetensors.torch

    names = {
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "BF16": torch.bfloat16,
        "F16": torch.float16,
    }
    # Every value that there is, the strange ones too.
    bits = torch.arange(256, dtype=torch.uint8).repeat(2)
    theirs = bits.view(names[dtype]).reshape(2, -1)
    safetensors.torch.save_file(
        {"a": theirs, "b": theirs[:0]}, tmp_path / "a.safetensors"
    )
    a, b = sorted(safetensors_weights.read(tmp_path / "a.safetensors"))
    assert (a.key, a.shape, b.key, b.shape) == (
        "a",
        theirs.shape,
        "b",
        (0, theirs.shape[1]),
    )
    ours = a.read().astype(np.float32)
    np.testing.assert_array_equal(ours, theirs.float().numpy())
    assert b.read().size == 0


# Settings


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("unet", {"layers_per_block": [1, 1]}),
        ("unet", {"cross_attention_dim": [32, 32]}),
        ("unet", {"transformer_layers_per_block": [1, 1]}),
        ("unet", {"only_cross_attention": [False, False]}),
        ("unet", {"only_cross_attention": None}),
        ("unet", {"attention_head_dim": [4, 4]}),
        ("unet", {"num_attention_heads": 4}),
        ("unet", {"sample_size": [16, 16]}),
        ("unet", {"mid_block_scale_factor": 1.0}),
        ("unet", {"norm_num_groups": 8.0}),
        ("unet", {"act_fn": "swish"}),
        ("unet", {"dual_cross_attention": 0, "center_input_sample": None}),
        ("unet", {"_class_name": "FlaxUNet2DConditionModel"}),
        ("unet", {"upcast_attention": None, "dropout": 0.0, "new_setting": [1, 2]}),
        ("vae", {"act_fn": "swish", "scaling_factor": None}),
        ("vae", {"use_quant_conv": 1, "mid_block_add_attention": None}),
        ("vae", {"force_upcast": True, "latents_mean": None}),
        ("text_encoder", {"hidden_act": "quick_gelu", "num_hidden_layers": 2.0}),
    ],
)
def test_settings_that_mean_the_same_make_the_same_model(
    folder: Path, part: str, settings: dict[str, Any]
) -> None:
    expected = base_model.open_model(str(folder)).family
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    ours = base_model.open_model(str(folder)).family
    assert ours.parts[part] == expected.parts[part]
    assert ours.sample_size == expected.sample_size


def test_a_model_of_wide_pictures_says_so(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    content = {**json.loads(path.read_text()), "sample_size": [16, 24]}
    path.write_text(json.dumps(content))
    assert base_model.open_model(str(folder)).family.sample_size == (16, 24)
