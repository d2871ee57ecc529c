"""Files that are no model end in one line, which says what they are."""

import json
import pickle
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import single_files
from short_lines import line_of

from ti_flax.models import single_file

ONE = np.ones((4, 4), np.float32)
F8 = ONE.astype(ml_dtypes.float8_e4m3fn)
UNET = "model.diffusion_model."
# The least that is taken for a UNet of latent diffusion.
SIGN = {f"{UNET}input_blocks.0.0.weight": np.ones((4, 4, 3, 3), np.float32)}


def the_line(path: Path) -> str:
    def use(path: Path) -> None:
        opened = single_file.open_file(path)
        for part in ("unet", "vae", "text_encoder"):
            opened.config(part)

    return line_of(path, use, "FILE")


KEYS: list[tuple[str, list[str]]] = [
    (
        "a LoRA",
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    ),
    ("a LoRA", ["lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"]),
    ("a LoRA", ["unet.down_blocks.0.attentions.0.to_k.lora_A.weight"]),
    ("a LoRA", ["unet.mid_block.attentions.0.processor.to_q_lora.up.weight"]),
    ("a LoRA", ["lora_unet_input_blocks_1_0_in_layers_2.hada_w1_a"]),
    ("a LoRA", ["lora_unet_mid_block.lokr_w1"]),
    ("a learned word", ["emb_params"]),
    ("a learned word", ["clip_l", "clip_g"]),
    ("a ControlNet", ["control_model.input_blocks.0.0.weight", *SIGN]),
    ("a ControlNet", ["controlnet_cond_embedding.conv_in.weight"]),
    ("a ControlNet", ["input_hint_block.0.weight"]),
    ("a T2I-Adapter", ["adapter.body.0.block1.weight"]),
    ("an IP-Adapter", ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"]),
    ("a motion module", ["down_blocks.0.motion_modules.0.norm.weight"]),
    ("a depth-to-image model", ["depth_model.model.pretrained.x", *SIGN]),
    ("an unCLIP model", ["embedder.model.visual.proj", *SIGN]),
    ("an unCLIP model", ["noise_augmentor.data_mean", *SIGN]),
    ("a video model", [f"{UNET}input_blocks.1.1.time_stack.0.weight", *SIGN]),
    ("quantised", [f"{UNET}out.2.weight.quant_state.bitsandbytes__nf4", *SIGN]),
    ("quantised", [f"{UNET}out.2.weight.absmax", *SIGN]),
    ("CosXL", ["edm_vpred.sigma_max", *SIGN]),
    ("FLUX or a relative", ["double_blocks.0.img_attn.qkv.weight"]),
    ("FLUX or a relative", [f"{UNET}double_blocks.0.img_attn.qkv.weight"]),
    ("FLUX or a relative", [f"{UNET}double_stream_blocks.0.x.weight"]),
    ("Stable Diffusion 3", [f"{UNET}joint_blocks.0.context_block.x.weight"]),
    ("Stable Cascade", ["down_blocks.0.0.channelwise.0.weight"]),
    ("a text encoder alone", ["cond_stage_model.transformer.token_emb.weight"]),
    ("a diffusion transformer", [f"{UNET}transformer_blocks.0.attn.to_q.weight"]),
    ("a diffusion transformer", ["blocks.0.cross_attn.q.weight"]),
    ("a diffusion transformer", [f"{UNET}layers.0.attention.qkv.weight"]),
    ("the file of a UNet in diffusers' layout", ["down_blocks.0.resnets.0.x"]),
    ("a VAE alone", ["decoder.conv_in.weight", "encoder.conv_in.weight"]),
    ("a VAE alone", ["first_stage_model.decoder.conv_in.weight"]),
    ("a text encoder alone", ["text_model.embeddings.token_embedding.weight"]),
    ("a text encoder alone", ["transformer.resblocks.0.ln_1.weight"]),
    ("found no tensors", []),
    (
        "expected a model in one file, with a UNet's tensors such as model.diffusion_m"
        "odel.input_blocks.0.0.weight, found some.weight, other.weight;",
        ["some.weight", "other.weight"],
    ),
    (r"found \x1b]0;title\x07", ["\x1b]0;title\x07" * 40]),
]


@pytest.mark.parametrize("case", KEYS, ids=lambda case: case[0][:30])
def test_what_is_no_model_is_named(case: tuple[str, list[str]], tmp_path: Path) -> None:
    told, keys = case
    arrays = {key: SIGN.get(key, ONE) for key in keys}
    line = the_line(single_files.save(tmp_path / "m.safetensors", arrays))
    assert told in line and re.search(r"; (give|set) ", line)


def gguf(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\0" * 100)


def legacy(path: Path) -> None:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    path.write_bytes(magic + pickle.dumps(1001, protocol=2) + b"x" * 100)


def tar(path: Path) -> None:
    inner = path.with_name("storages")
    inner.write_bytes(b"\0" * 100)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "storages")
    inner.unlink()


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>Please log in</html>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def truncated(path: Path) -> None:
    single_files.save(path, SIGN)
    path.write_bytes(path.read_bytes()[:-1])


def int8(path: Path) -> None:
    key = f"{UNET}out.2.weight"
    single_files.save(path, {**SIGN, key: ONE.astype(np.uint8)})


def scales_by_block(path: Path) -> None:
    key = f"{UNET}time_embed.0"
    scales = np.ones((2, 2), np.float32)
    arrays = {f"{key}.weight": F8, f"{key}.scale_weight": scales}
    single_files.save(path, {**SIGN, **arrays})


def scaled_floats(path: Path) -> None:
    key = f"{UNET}time_embed.0"
    arrays = {f"{key}.weight": ONE, f"{key}.weight_scale": np.float32([2])}
    single_files.save(path, {**SIGN, **arrays})


def beside(text: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        single_files.save(path, SIGN)
        path.with_suffix(".yaml").write_bytes(text)

    return write


def no_channels(path: Path) -> None:
    key = f"{UNET}input_blocks.0.0.weight"
    single_files.save(path, {key: np.float32(1).reshape(())})


BYTES: list[tuple[str, Callable[[Path], None]]] = [
    ("is a quantised GGUF, not supported; give the same model as .safetensors", gguf),
    ("from before torch 1.6", legacy),
    ("from before torch 1.6", tar),
    ("cannot be read", page),
    ("cannot be read", pointer),
    ("cannot be read", truncated),
    ("cannot be read", lambda path: path.write_bytes(b"")),
    ("cannot be read", lambda path: path.write_bytes(b"\0" * 1000)),
    ("no such file", lambda path: None),
    ("expected a file, found a folder", lambda path: path.mkdir()),
    ("quantised (uint8 weights)", int8),
    ("quantised in a way that is not supported", scales_by_block),
    ("quantised in a way that is not supported", scaled_floats),
    ("not readable YAML", beside(b"model: [")),
    ("not readable YAML", beside(b"\xff\xfe\xff")),
    ("not readable YAML", beside(b"[" * 5000)),
    ("has 70000 bytes, expected at most 65536", beside(b"#" * 70000)),
    ("expected the settings of m.safetensors, found 5", beside(b"5")),
    ("a tensor conv_in.weight of the unet, found one of shape []", no_channels),
    (
        "expected a tensor down_blocks.0.resnets.0.conv1.weight of the unet, found "
        "none; the file is damaged",
        lambda path: single_files.save(path, SIGN),
    ),
]


@pytest.mark.parametrize("case", BYTES, ids=lambda case: case[0][:30])
def test_a_file_that_cannot_be_read_is_told(
    case: tuple[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    told, write = case
    path = tmp_path / "m.safetensors"
    write(path)
    assert told in the_line(path)


def test_a_header_of_many_keys_is_told_in_time(tmp_path: Path) -> None:
    """A UNet's block numbers are taken from the keys, whatever they are."""
    arrays = {
        f"{UNET}{kind}.{i}.{j}.op.weight": ONE
        for kind in ("input_blocks", "output_blocks")
        for i in range(1000)
        for j in range(3)
    }
    arrays[f"{UNET}input_blocks.{'9' * 5000}.0.op.weight"] = ONE
    the_line(single_files.save(tmp_path / "m.safetensors", {**arrays, **SIGN}))


def test_yaml_that_refers_to_itself_ends(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    path = tmp_path / "m.safetensors"
    beside("\n".join(lines).encode())(path)
    assert "conv1.weight" in the_line(path)
    beside(b"&a [*a]")(path)
    assert "expected the settings" in the_line(path)


def test_the_header_of_a_model_is_json_of_any_order(tmp_path: Path) -> None:
    path = single_files.save(tmp_path / "m.safetensors", SIGN, {"a": "b"})
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"a": "b"}
    assert single_file.single_file_contents.read(path).metadata == {"a": "b"}
