"""Base models of strangers: whatever is in their folders ends in one short line."""

import json
import math
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from short_lines import line_of

from ti_flax.diffusion import scheduler_config
from ti_flax.models import base_model
from ti_flax.text.tokenizer import load_tokenizer

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def the_line(folder: Path, use: Callable[[Path], object]) -> str:
    return line_of(folder, use, "MODEL")


def open_model(folder: Path) -> base_model.BaseModel:
    return base_model.open_model(str(folder))


def read_weights(folder: Path) -> None:
    model = open_model(folder)
    # Before the network is traced, which takes a second.
    list(model.source.tensors("unet"))
    model.fingerprint()
    model.load("unet")


def sample(folder: Path) -> None:
    config = open_model(folder).scheduler
    for name in (scheduler_config.find_name(config), *scheduler_config.SCHEDULERS):
        scheduler_config.make_sampler(config, name, 3)


# What stands in a file's place


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the address is short
        server.bind(path.name)
        os.chdir(here)


def a_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse


def bytes_of(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


IN_PLACE: dict[str, tuple[Spoil, str]] = {
    "pipe": (a_pipe, "expected a file, found a pipe"),
    "folder": (a_folder, "expected a file, found a folder"),
    "device": (a_device, "expected a file, found a device"),
    "loop": (a_loop, "cannot be opened (Too many levels of symbolic links)"),
    "socket": (a_socket, "expected a file, found a socket"),
    "huge": (a_huge_file, "has 1099511627776 bytes, expected at most"),
    "broken link": (a_broken_link, "no such file"),
    "empty": (bytes_of(b""), "not readable JSON (Expecting value"),
    "cut short": (bytes_of(b'{"a": 1, "b'), "not readable JSON (Unterminated"),
    "not UTF-8": (bytes_of(b'{"a": "\xff\xfe"}'), "not readable JSON ('utf-8' codec"),
    "deep lists": (bytes_of(b"[" * 10**6), "more than 32 levels"),
    "deep objects": (bytes_of(b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "32 levels"),
    "rather deep": (bytes_of(b"[" * 40 + b"]" * 40), "more than 32 levels"),
    "5000 digits": (bytes_of(b'{"a": ' + b"1" * 5000 + b"}"), "not readable JSON"),
    "a list": (bytes_of(b"[1]"), "expected a JSON object, found [1]"),
    "a number": (bytes_of(b"NaN"), "expected a JSON object, found nan"),
    "a text": (bytes_of(b'"\\u001b[31m"'), r"expected a JSON object, found '\x1b[31m'"),
    "HTML": (bytes_of(b"<!DOCTYPE html><title>x</title>"), "not readable JSON"),
}
JSON_FILES = (
    "unet/config.json",
    "text_encoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_no_configuration_is_told(folder: Path, name: str, kind: str) -> None:
    replace, told = IN_PLACE[kind]
    (folder / name).unlink()
    replace(folder / name)
    line = the_line(folder, open_model)
    assert line.startswith(f"MODEL/{name}: ") and told in line


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_no_tokenizer_file_is_told(folder: Path, kind: str) -> None:
    replace, told = IN_PLACE[kind]
    for name in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = folder / "tokenizer" / name
        kept = path.rename(path.with_suffix(".kept"))
        replace(path)
        line = the_line(folder / "tokenizer", load_tokenizer)
        assert line.startswith(f"MODEL/{name}: ")
        assert told in line or "leads to no file" in line
        # A folder is put aside, all else replaced.
        if path.is_dir():
            path.rename(path.with_suffix(".folder"))
        kept.replace(path)
    load_tokenizer(folder / "tokenizer")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "huge"])
@pytest.mark.parametrize(
    "name", ["merges.txt", "tokenizer.json", "chat_template.jinja"]
)
def test_any_file_that_transformers_reads_is_one(
    folder: Path, name: str, kind: str
) -> None:
    replace, told = IN_PLACE[kind]
    (folder / "tokenizer" / name).unlink(missing_ok=True)
    replace(folder / "tokenizer" / name)
    assert told in the_line(folder / "tokenizer", load_tokenizer)


# What settings say


def settings(file: str, **values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def of_unet(**values: Any) -> Spoil:
    return settings("unet/config.json", **values)


def of_text(**values: Any) -> Spoil:
    return settings("text_encoder/config.json", **values)


def of_vae(**values: Any) -> Spoil:
    return settings("vae/config.json", **values)


def of_scheduler(**values: Any) -> Spoil:
    return settings("scheduler/scheduler_config.json", **values)


def of_tokenizer(**values: Any) -> Spoil:
    return settings("tokenizer/tokenizer_config.json", **values)


LONG = "\x1b]0;title\x07" + "x" * 10**6
SETTINGS: list[tuple[Spoil, str]] = [
    (of_unet(attention_head_dim=0), "unet: attention_head_dim is 0, expected 1 to"),
    (of_unet(attention_head_dim=[4, 0]), "attention_head_dim is 0"),
    (of_unet(attention_head_dim=[4, None]), "attention_head_dim is None"),
    (of_unet(attention_head_dim=[4, 4, 4]), "expected 2 entries, one a block, found 3"),
    (of_unet(attention_head_dim=7), "attention_head_dim is 7, expected a divisor of"),
    (of_unet(block_out_channels=[]), "expected 1 to 8 entries, one a block, found 0"),
    (of_unet(block_out_channels=[16] * 1000), "expected 1 to 8 entries"),
    (of_unet(block_out_channels=[16, 10**12]), "block_out_channels is 1000000000000"),
    (of_unet(block_out_channels=[16, "32"]), "block_out_channels is '32'"),
    (of_unet(block_out_channels=[16, math.nan]), "block_out_channels is nan"),
    (of_unet(block_out_channels=[16, [32]]), "block_out_channels is [32]"),
    (of_unet(block_out_channels=16), "block_out_channels is 16, expected a list"),
    (of_unet(block_out_channels=None), "block_out_channels is missing"),
    (of_unet(norm_num_groups=5), "norm_num_groups is 5, expected a divisor of 16"),
    (of_unet(norm_num_groups=0), "norm_num_groups is 0"),
    (of_unet(norm_eps=math.nan), "norm_eps is nan"),
    (of_unet(norm_eps="1e-5"), "norm_eps is '1e-5'"),
    (of_unet(layers_per_block=10**9), "layers_per_block is 1000000000"),
    (of_unet(layers_per_block=True), "layers_per_block is True"),
    (of_unet(transformer_layers_per_block=10**9), "is 1000000000"),
    (of_unet(in_channels=10**9), "in_channels is 1000000000"),
    (of_unet(in_channels={}), "in_channels is {}"),
    (of_unet(cross_attention_dim=[32, 64]), "cross_attention_dim is [32, 64]"),
    (of_unet(down_block_types="DownBlock2D"), "down_block_types is 'DownBlock2D'"),
    (of_unet(down_block_types=[LONG, LONG]), r"down_block_types is '\x1b]0;title\x07"),
    (of_unet(down_block_types=[{}, []]), "down_block_types is {}"),
    (of_unet(act_fn=LONG), r"act_fn is '\x1b]0;title\x07"),
    (of_unet(act_fn=[["relu"] * 10] * 10**5), "act_fn is [['relu'"),
    (of_unet(sample_size=[16, 16, 16]), "expected 2 entries"),
    (of_unet(sample_size=0), "sample_size is 0"),
    (of_unet(sample_size=10**9), "sample_size is 1000000000"),
    (of_unet(_class_name=LONG), r"its class is '\x1b]0;title\x07"),
    (of_unet(_class_name="UNetMotionModel"), "its class is 'UNetMotionModel'"),
    (of_unet(freq_shift=10), "freq_shift is 10"),
    (of_unet(flip_sin_to_cos="no"), "flip_sin_to_cos is 'no', expected true or false"),
    (of_text(num_attention_heads=0), "text_encoder: num_attention_heads is 0"),
    (of_text(num_attention_heads=5), "num_attention_heads is 5, expected a divisor"),
    (of_text(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (of_text(vocab_size=2**40), "vocab_size is 1099511627776"),
    (of_text(vocab_size=-1), "vocab_size is -1"),
    (of_text(hidden_size=10**5), "hidden_size is 100000"),
    (of_text(max_position_embeddings=10**9), "max_position_embeddings is 1000000000"),
    (of_text(hidden_act={"a": 1}), "hidden_act is {'a': 1}"),
    (of_text(layer_norm_eps=[1e-5, 1e-6]), "layer_norm_eps is [1e-05, 1e-06]"),
    (of_text(model_type=["t5"]), "model_type is ['t5']"),
    (of_vae(_class_name="AutoencoderTiny"), "its class is 'AutoencoderTiny'"),
    (of_vae(_class_name="AsymmetricAutoencoderKL"), "'AsymmetricAutoencoderKL'"),
    (of_vae(_class_name="VQModel"), "its class is 'VQModel'"),
    (of_vae(_class_name="ConsistencyDecoderVAE"), "'ConsistencyDecoderVAE'"),
    (of_vae(scaling_factor=0), "vae: scaling_factor is 0"),
    (of_vae(scaling_factor=math.inf), "scaling_factor is inf"),
    (of_vae(latent_channels=0), "latent_channels is 0"),
    (of_vae(in_channels=4), "in_channels is 4, expected 3"),
    (of_vae(layers_per_block=10**9), "layers_per_block is 1000000000"),
    (of_vae(block_out_channels=[8] * 9), "expected 1 to 8 entries"),
    (of_vae(norm_num_groups=3), "norm_num_groups is 3, expected a divisor of 8"),
    (of_vae(down_block_types=[1, 2]), "down_block_types is 1"),
    (of_vae(shift_factor=[0.1, LONG]), "shift_factor is [0.1, '"),
]


@pytest.mark.parametrize("case", SETTINGS, ids=lambda case: case[1][:50])
def test_settings_out_of_range_are_told_before_weights_are_read(
    folder: Path, case: tuple[Spoil, str]
) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    spoil, told = case
    spoil(folder)
    line = the_line(folder, open_model)
    assert told in line
    # Nothing was seen to be damaged.
    assert "damaged" not in line and "download" not in line and "again" not in line


SCHEDULERS: list[tuple[Spoil, str]] = [
    (of_scheduler(beta_end=[0.012, 0.02]), "beta_end is [0.012, 0.02]"),
    (of_scheduler(beta_end="0.012"), "beta_end is '0.012'"),
    (of_scheduler(beta_end=math.nan), "beta_end is nan"),
    (of_scheduler(beta_end=2), "beta_end is 2, expected 0 to 1"),
    (of_scheduler(beta_start=-1), "beta_start is -1"),
    (of_scheduler(beta_start=0, beta_end=0), "no noise schedule"),
    (of_scheduler(beta_start=1, beta_end=1), "no noise schedule"),
    (of_scheduler(num_train_timesteps=0), "num_train_timesteps is 0"),
    (of_scheduler(num_train_timesteps=1e12), "num_train_timesteps is 1000000000000.0"),
    (of_scheduler(num_train_timesteps=10**5), "no noise schedule"),
    (of_scheduler(num_train_timesteps={}), "num_train_timesteps is {}"),
    (of_scheduler(trained_betas="0.1"), "trained_betas is '0.1', expected a list of"),
    (of_scheduler(trained_betas=[]), "trained_betas is [], expected a list of"),
    (of_scheduler(trained_betas=[0.1, [0.2]]), "trained_betas is [0.2]"),
    (of_scheduler(trained_betas=[0.1, math.nan]), "trained_betas is nan"),
    (of_scheduler(trained_betas=[0.1] * 10**6), "expected a list of 1 to 100000"),
    (of_scheduler(trained_betas=[0.1]), "no noise schedule"),
    (of_scheduler(trained_betas={"0": 0.1}), "trained_betas is {'0': 0.1}"),
    (of_scheduler(beta_schedule=LONG), r"beta_schedule is '\x1b]0;title\x07"),
    (of_scheduler(beta_schedule=5), "beta_schedule is 5, expected linear or"),
    (of_scheduler(prediction_type=["sample"]), "prediction_type is 'sample'"),
    (of_scheduler(prediction_type=LONG), r"prediction_type is '\x1b]0;title\x07"),
    (of_scheduler(rescale_betas_zero_snr="yes"), "rescale_betas_zero_snr is 'yes'"),
    (of_scheduler(_class_name=LONG), r"the model's own is '\x1b]0;title\x07"),
    (of_scheduler(_class_name=["PNDMScheduler"]), "the model's own is ['PNDM"),
    (of_scheduler(timestep_spacing=1), "timestep_spacing is 1, expected linspace or"),
    (of_scheduler(timestep_spacing="end"), "timestep_spacing is 'end', supported is"),
    (of_scheduler(steps_offset=10**9), "steps_offset is 1000000000"),
    (of_scheduler(steps_offset=-1), "steps_offset is -1"),
    (of_scheduler(steps_offset=[1, 2]), "steps_offset is [1, 2]"),
    (of_scheduler(set_alpha_to_one="x"), "set_alpha_to_one is 'x'"),
    (of_scheduler(skip_prk_steps=[True, False]), "skip_prk_steps is [True, False]"),
    (of_scheduler(use_karras_sigmas="x"), "use_karras_sigmas is 'x'"),
    (of_scheduler(final_sigmas_type={}), "final_sigmas_type is {}"),
    (of_scheduler(solver_order=LONG), r"solver_order is '\x1b]0;title\x07"),
]


@pytest.mark.parametrize("case", SCHEDULERS, ids=lambda case: case[1][:50])
def test_schedulers_out_of_range_are_told(
    folder: Path, case: tuple[Spoil, str]
) -> None:
    spoil, told = case
    spoil(folder)
    line = the_line(folder, sample)
    assert line.startswith("scheduler: ") and told in line


# What a tokenizer says


def of_file(name: str, content: Any) -> Spoil:
    return lambda folder: (folder / "tokenizer" / name).write_text(json.dumps(content))


TOKENIZERS: list[tuple[Spoil, str]] = [
    (of_file("vocab.json", {"a</w>": "0"}), "the id of 'a</w>' is '0', expected 0 to"),
    (of_file("vocab.json", {LONG: -1}), r"the id of '\x1b]0;title\x07"),
    (of_file("vocab.json", {"a</w>": 2**60}), "is 1152921504606846976"),
    (of_file("vocab.json", {"a</w>": [1]}), "is [1], expected"),
    (of_file("vocab.json", {}), ""),
    (of_file("vocab.json", {"a": 0, "b": 0}), ""),
    (of_file("added_tokens.json", {"<a>": 1e300}), "the id of '<a>' is 1e+300"),
    (of_file("tokenizer.json", {}), "the tokenizer cannot be read"),
    (of_file("tokenizer.json", {"added_tokens": 5}), "the tokenizer cannot be read"),
    (of_tokenizer(model_max_length="77"), "model_max_length is '77'"),
    (of_tokenizer(model_max_length=-5), "model_max_length is -5"),
    (of_tokenizer(model_max_length=0), "model_max_length is 0"),
    (of_tokenizer(model_max_length=[77, 78]), "model_max_length is [77, 78]"),
    (of_tokenizer(added_tokens_decoder={"x": 1}), "the tokenizer cannot be read"),
    (of_tokenizer(added_tokens_decoder=[LONG]), "the tokenizer cannot be read"),
    (of_file("special_tokens_map.json", {"pad_token": 5}), "cannot be read (Special"),
    (of_file("special_tokens_map.json", {"pad_token": None}), "has no pad_token"),
    (of_file("special_tokens_map.json", {"pad_token": [LONG]}), "cannot be read"),
]


@pytest.mark.parametrize("case", TOKENIZERS, ids=lambda case: case[1][:40])
def test_tokenizers_out_of_range_are_told(
    folder: Path, case: tuple[Spoil, str]
) -> None:
    spoil, told = case
    spoil(folder)
    assert told in the_line(folder / "tokenizer", load_tokenizer)


# What weights are


def unet_file(content: bytes | None = None, *, cut: int = 0) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / UNET
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - cut] if content is None else content)

    return spoil


def in_its_place(replace: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / UNET).unlink()
        replace(folder / UNET)

    return spoil


def header(change: Callable[[dict], object]) -> Spoil:
    """The UNet's header changed, its numbers as they are."""

    def spoil(folder: Path) -> None:
        whole = (folder / UNET).read_bytes()
        length = int.from_bytes(whole[:8], "little")
        content = json.loads(whole[8 : 8 + length])
        text = json.dumps(change(content) or content).encode()
        (folder / UNET).write_bytes(
            struct.pack("<Q", len(text)) + text + whole[8 + length :]
        )

    return spoil


def entry(**values: Any) -> Spoil:
    return header(lambda content: content["conv_in.bias"].update(values))


def tensors(change: Callable[[dict], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = load_file(folder / UNET)
        save_file(change(content) or content, folder / UNET)

    return spoil


def index(content: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / UNET).rename(folder / "unet/shard.safetensors")
        (folder / INDEX).write_text(json.dumps(content))

    return spoil


def shard(name: Any) -> Spoil:
    return index({"metadata": {}, "weight_map": {"conv_in.bias": name}})


WEIGHTS: list[tuple[Spoil, str]] = [
    (in_its_place(a_pipe), f"MODEL/{UNET}: expected a file, found a pipe"),
    (in_its_place(a_folder), "expected a file, found a folder"),
    (in_its_place(a_device), "expected a file, found a device"),
    (in_its_place(a_loop), "cannot be opened (Too many levels of symbolic links)"),
    (in_its_place(a_socket), "expected a file, found a socket"),
    (in_its_place(a_broken_link), "no such file; download the model again"),
    (in_its_place(a_huge_file), "cannot be read"),
    (unet_file(b""), "expected a safetensors file, found one that cannot be read"),
    (unet_file(b"1234567"), "cannot be read"),
    (unet_file(cut=1), "cannot be read"),
    (unet_file(cut=10000), "cannot be read"),
    (unet_file(struct.pack("<Q", 2**62) + b"{}"), "cannot be read"),
    (unet_file(struct.pack("<Q", 2) + b"[]"), "a header that is no JSON object"),
    (unet_file(struct.pack("<Q", 2) + b"{}"), "missing: "),
    (unet_file(struct.pack("<Q", 10**6) + b"[" * 10**6), "cannot be read"),
    (unet_file(b"<!DOCTYPE html>" * 100), "cannot be read"),
    (unet_file(b"version https://git-lfs.github.com/spec/v1\n"), "cannot be read"),
    (entry(data_offsets=[0, 2**62]), "cannot be read ('conv_in.bias' is {"),
    (entry(data_offsets=[2**62, 2**62 + 64]), "cannot be read ('conv_in.bias' is {"),
    (entry(data_offsets=[-64, 0]), "cannot be read"),
    (entry(data_offsets=[64, 0]), "are not where they are"),
    (entry(data_offsets=[0]), "cannot be read"),
    (entry(data_offsets="0"), "cannot be read"),
    (entry(data_offsets=None), "cannot be read"),
    (entry(shape=[2**62]), "cannot be read"),
    (entry(shape=[2**39, 2**39, 2**39]), "are not where they are"),
    (entry(shape=[1] * 9), "cannot be read"),
    (entry(shape=["16"]), "cannot be read"),
    (entry(shape=[15]), "are not where they are"),
    (entry(dtype="F4"), "numbers of type 'F4', which are not read"),
    (entry(dtype=LONG), r"numbers of type '\x1b]0;title\x07"),
    (entry(dtype=["F32"]), "numbers of type ['F32']"),
    (header(lambda content: {**content, "x": 5}), "'x' is 5"),
    (header(lambda content: {**content, LONG: {}}), r"'\x1b]0;title\x07"),
    (header(lambda content: content.pop("conv_in.bias") and None), "where"),
    (
        tensors(lambda content: content.update({LONG: np.zeros(2, "f4")})),
        r"1 unknown: \x1b]0;title\x07",
    ),
    (
        tensors(lambda content: {f"key.{i}" * 20: np.zeros(1) for i in range(999)}),
        "more",
    ),
    (
        tensors(lambda content: content.update({"conv_in.bias": np.zeros(16, "i4")})),
        "1 not of floating point: conv_in.bias int32",
    ),
    (index({}), "weight_map is None, expected the file of each tensor"),
    (index({"weight_map": {}}), "weight_map is {}"),
    (index({"weight_map": [1, 2]}), "weight_map is [1, 2]"),
    (index({"weight_map": LONG}), r"weight_map is '\x1b]0;title\x07"),
    (index([]), "expected a JSON object, found []"),
    (shard(5), "names the file 5, expected one of its folder"),
    (shard(None), "names the file None"),
    (shard(["a.safetensors"]), "names the file ['a.safetensors']"),
    (shard({}), "names the file {}"),
    (shard("../vae/diffusion_pytorch_model.safetensors"), "names the file '../vae"),
    (shard("/etc/passwd"), "names the file '/etc/passwd'"),
    (shard("sub/shard.safetensors"), "names the file 'sub/shard.safetensors'"),
    (shard("config.json"), "names the file 'config.json'"),
    (shard("..safetensors"), "names the file '..safetensors'"),
    (shard(""), "names the file ''"),
    (shard("x" * 10**5), "names the file 'xxx"),
    (shard(LONG + ".safetensors"), r"names the file '\x1b]0;title\x07"),
    (shard("other.safetensors"), "names other.safetensors, not there; download"),
    (
        index({"weight_map": {str(i): f"{i}.safetensors" for i in range(2000)}}),
        "names 2000 files, expected at most 1000",
    ),
    (
        index({"weight_map": {str(i): f"{i}.safetensors" for i in range(900)}}),
        "897 more, not there",
    ),
]


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case[1][:50])
def test_what_are_no_weights_is_told(folder: Path, case: tuple[Spoil, str]) -> None:
    spoil, told = case
    spoil(folder)
    assert told in the_line(folder, read_weights)


def test_the_folder_that_is_spoilt_is_sound(folder: Path) -> None:
    read_weights(folder)
    sample(folder)
    load_tokenizer(folder / "tokenizer")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="as root")
@pytest.mark.parametrize("name", ["unet/config.json", UNET, "unet", "tokenizer"])
def test_what_may_not_be_read_is_told(folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    try:
        uses = (open_model, read_weights, lambda f: load_tokenizer(f / "tokenizer"))
        use = uses[("config" not in name) + (name == "tokenizer")]
        assert "Permission denied" in the_line(folder, use)
    finally:
        (folder / name).chmod(0o755)


# Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        "./model.safetensors",
        "a--b/c",
        "a/..",
        "../a/b",
        "a/b.git",
        "日本/モデル",
        "o" * 300 + "/n",
        "o/" + "n" * 300,
        "x" * 10**6,
        "/" + "x" * 300,
        "a\0b",
        "a/b\n",
        "a/b\x1b[31m",
        "~nobody-of-this-name/x",
        "models/none.safetensors",
        "models/none.ckpt",
        "C:\\models\\none.safetensors",
    ],
)
def test_a_name_that_is_no_model_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    line = the_line(Path(name or "nothing"), lambda _: base_model.open_model(name))
    assert re.match(r"pretrained_model_name_or_path: no (folder|file) ", line)
