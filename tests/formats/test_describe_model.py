"""What `python -m ti_flax.inspect` says of a model in one file."""

import struct
from pathlib import Path

import doors
import numpy as np
import pytest
import single_files

from ti_flax.formats import describe
from ti_flax.pickles import torch_zip
from ti_flax.runtime.errors import UserError

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> single_files.Arrays:
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    own = single_files.small_configs("sdxl")
    single_files.write_folder(folder, own)
    return single_files.tensors_of(folder, own)


def facts(path: Path) -> dict[str, str]:
    lines = describe.describe_embedding(file=str(path)).splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_it_says_what_a_file_is(tensors, tmp_path: Path) -> None:
    half = {key: array.astype(np.float16) for key, array in tensors.items()}
    marks = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    metadata = {"modelspec.title": "Noob\x1b[31m", "ss_epoch": "3"}
    path = single_files.save(tmp_path / "m.safetensors", {**half, **marks}, metadata)
    found = facts(path)
    assert found["file"] == str(path)
    assert found["size"].endswith(" MiB")
    assert found["model"] == "SDXL, of a depth of its own"
    sizes = {
        part: sum(a.size for k, a in tensors.items() if k.startswith(prefix)) / 1e6
        for part, prefix in {"unet": UNET, "vae": "first_stage_model."}.items()
    }
    for part, millions in sizes.items():
        assert found[part] == f"{millions:.2f} M of float16"
    assert found["text_encoder"].endswith("M of float16")
    assert found["text_encoder_2"].endswith("M of float16")
    assert found["unet's input"] == "4 channels, context of width 192"
    assert found["prediction_type"] == (
        "v_prediction (the key v_pred in the file and the key ztsnr in the file)"
    )
    assert found["zero terminal SNR"] == "yes"
    assert found["EMA"] == "none"
    assert found["modelspec.title"] == "Noob\\x1b[31m"
    assert found["ss_epoch"] == "3"


def test_it_says_what_is_missing_and_what_is_double(tensors, tmp_path: Path) -> None:
    left = {
        key: array
        for key, array in tensors.items()
        if not key.startswith(("first_stage_model.", "conditioner.embedders.1."))
    }
    left |= single_files.averages(tensors)
    path = tmp_path / "m.ckpt"
    torch_zip.save(path, {"state_dict": left, "global_step": 12})
    found = facts(path)
    assert found["vae"] == "none; set vae to one"
    assert found["text_encoder_2"] == "none; set text_encoder to one"
    assert found["EMA"] == "in the file, not used; ema true takes it"
    assert found["global_step"] == "12"


def test_numbers_of_several_types_are_told(tensors, tmp_path: Path) -> None:
    mixed = {
        key: array.astype(single_files.DTYPES["F8_E4M3"])
        if key.startswith(f"{UNET}input_blocks")
        else array
        for key, array in tensors.items()
    }
    path = single_files.save(tmp_path / "m.safetensors", mixed)
    numbers = facts(path)["unet"].partition(" M of ")[2]
    assert set(numbers.split(" and ")) == {"float8_e4m3fn", "float32"}


def test_metadata_without_end_is_cut(tensors, tmp_path: Path) -> None:
    metadata = {f"key {i}": "x" * 10_000 for i in range(300)}
    path = single_files.save(tmp_path / "m.safetensors", tensors, metadata)
    text = describe.describe_embedding(file=str(path))
    assert len(text) < 30_000 and text.endswith("and 100 more")


def test_a_model_of_another_family_is_named(tmp_path: Path) -> None:
    one = np.ones((2, 2), np.float32)
    flux = {f"{UNET}double_blocks.0.img_attn.qkv.weight": one}
    path = single_files.save(tmp_path / "m.safetensors", flux)
    with pytest.raises(UserError, match="is FLUX or a relative, not supported; give"):
        describe.describe_embedding(file=str(path))
    quantised = tmp_path / "m.gguf"
    quantised.write_bytes(b"GGUF" + struct.pack("<I", 3) + b"\0" * 50)
    with pytest.raises(UserError, match="is a quantised GGUF, not supported"):
        describe.describe_embedding(file=str(quantised))


def test_the_command_needs_neither_torch_nor_jax(tensors, tmp_path: Path) -> None:
    path = single_files.save(tmp_path / "m.safetensors", tensors)
    (ended,) = doors.run([["inspect", str(path)]])
    assert ended.code == 0, ended.stderr
    assert not ended.asked
    assert "model: SDXL" in ended.stdout
