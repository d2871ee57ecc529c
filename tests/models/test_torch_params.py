"""Weights load exactly or not at all, and whatever is wrong is named in one line."""

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import loading_memory
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from ti_flax.models import base_model, known, sources
from ti_flax.models.random_params import random_params
from ti_flax.models.tensors import Tensor
from ti_flax.models.torch_params import Params, save_params, torch_key
from ti_flax.pickles import torch_zip
from ti_flax.runtime import sharding
from ti_flax.runtime.errors import UserError

REFERENCE = Path(__file__).parents[1] / "reference"
FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion 1.x folder that diffusers wrote, to be spoilt by a test."""
    return Path(shutil.copytree(REFERENCE / "sd1" / "model", tmp_path / "model"))


def load(folder: Path, component: str, **settings: Any) -> Params:
    return base_model.open_model(str(folder), **settings).load(component)


def edit_tensors(path: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    """Rewrites a weights file; `edit` changes the tensors or returns others."""
    tensors = load_file(path)
    save_file(edit(tensors) or tensors, path, metadata={"format": "pt"})


def edit_config(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rename(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(key): value for key, value in tensors.items()}


def round_params(params: Params, dtype: Any) -> Params:
    """To `dtype` and back to float32."""
    return jax.tree.map(lambda p: np.asarray(p).astype(dtype).astype("f4"), params)


def assert_same_params(ours: Params, expected: Params) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("component", FILES)
@pytest.mark.parametrize("kind", ("sd1", "sd2"))
def test_every_tensor_of_the_file_is_one_param(kind: str, component: str) -> None:
    folder = REFERENCE / kind / "model"
    leaves = jax.tree_util.tree_leaves_with_path(load(folder, component))
    theirs = load_file(folder / FILES[component])
    assert sorted(torch_key(path) for path, _ in leaves) == sorted(theirs)
    assert sum(leaf.size for _, leaf in leaves) == sum(t.size for t in theirs.values())


def test_kernels_are_transposed_and_named_as_in_pytorch() -> None:
    folder = REFERENCE / "sd1" / "model"
    params = load(folder, "unet")["down_blocks_0"]
    theirs = load_file(folder / FILES["unet"])
    np.testing.assert_array_equal(
        params["resnets_1"]["conv1"]["kernel"],
        np.einsum("oihw->hwio", theirs["down_blocks.0.resnets.1.conv1.weight"]),
    )
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"
    block = params["attentions_0"]["transformer_blocks_0"]
    np.testing.assert_array_equal(block["attn2"]["to_out_0"]["kernel"], theirs[key].T)


def double_attention(tensors: Tensors) -> None:
    name = "encoder.mid_block.attentions.0"
    tensors[f"{name}.query.weight"] = tensors[f"{name}.to_q.weight"]


def double_embedding(tensors: Tensors) -> None:
    name = "embeddings.token_embedding.weight"
    tensors[f"text_model.{name}"] = tensors[name]


def add_unknown(tensors: Tensors) -> None:
    tensors["add_embedding.linear_1.weight"] = np.zeros((2, 2), np.float32)


def drop_output(tensors: Tensors) -> None:
    del tensors["conv_out.weight"], tensors["conv_out.bias"]


def widen_output(tensors: Tensors) -> None:
    tensors["conv_out.bias"] = np.zeros(5, np.float32)


@pytest.mark.parametrize(
    ("component", "edit", "listed"),
    [
        ("unet", add_unknown, "1 unknown: add_embedding.linear_1.weight"),
        ("unet", drop_output, "2 missing: conv_out.bias, conv_out.weight"),
        ("unet", widen_output, "1 misshapen: conv_out.bias [5] instead of [4]"),
        (
            "vae",
            double_attention,
            "1 doubled: encoder.mid_block.attentions.0.to_q.weight",
        ),
        (
            "text_encoder",
            double_embedding,
            "1 doubled: text_model.embeddings.token_embedding.weight",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(
    folder: Path, component: str, edit: Callable[[Tensors], None], listed: str
) -> None:
    edit_tensors(folder / FILES[component], edit)
    with pytest.raises(UserError) as raised:
        load(folder, component)
    message = str(raised.value)
    assert message.startswith(f"{component}: ")
    assert f"({listed})" in message


def test_all_faults_of_a_file_are_told_at_once(folder: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        add_unknown(tensors)
        widen_output(tensors)
        del tensors["conv_in.bias"]

    edit_tensors(folder / FILES["unet"], spoil)
    with pytest.raises(UserError) as raised:
        load(folder, "unet")
    for fault in (
        "1 unknown: add_embedding.linear_1.weight",
        "1 missing: conv_in.bias",
        "1 misshapen: conv_out.bias",
    ):
        assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_transposed_kernel_of_equal_size_is_refused(folder: Path) -> None:
    """Sizes agree, shapes do not: a reshape in the loader would let it pass."""
    key = "encoder.layers.0.mlp.fc1.weight"

    def transpose(tensors: Tensors) -> None:
        tensors[key] = np.ascontiguousarray(tensors[key].T)

    edit_tensors(folder / FILES["text_encoder"], transpose)
    with pytest.raises(UserError, match=f"1 misshapen: {re.escape(key)}"):
        load(folder, "text_encoder")


def test_text_encoder_keys_load_with_and_without_prefix(folder: Path) -> None:
    expected = load(folder, "text_encoder")
    change = rename(lambda key: f"text_model.{key}")
    edit_tensors(folder / FILES["text_encoder"], change)
    assert_same_params(load(folder, "text_encoder"), expected)


def test_position_ids_of_old_transformers_are_passed_over(folder: Path) -> None:
    expected = load(folder, "text_encoder")

    def add_buffer(tensors: Tensors) -> Tensors:
        prefixed = rename(lambda key: f"text_model.{key}")(tensors)
        positions = np.arange(77, dtype=np.int64)[None]
        return {**prefixed, "text_model.embeddings.position_ids": positions}

    edit_tensors(folder / FILES["text_encoder"], add_buffer)
    assert_same_params(load(folder, "text_encoder"), expected)


def test_old_names_of_vae_attention_load(folder: Path) -> None:
    expected = load(folder, "vae")
    old = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }

    def to_old(key: str) -> str:
        for name, before in old.items():
            key = key.replace(f"attentions.0.{name}.", f"attentions.0.{before}.")
        return key

    edit_tensors(folder / FILES["vae"], rename(to_old))
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in load_file(
        folder / FILES["vae"]
    )
    assert_same_params(load(folder, "vae"), expected)


def test_variant_chooses_the_file(folder: Path) -> None:
    path = folder / FILES["unet"]
    half = path.with_suffix(".fp16.safetensors")
    tensors = load_file(path)
    save_file({key: value.astype(np.float16) for key, value in tensors.items()}, half)
    rounded = round_params(load(folder, "unet"), np.float16)
    assert_same_params(load(folder, "unet", variant="fp16"), rounded)

    path.unlink()
    assert_same_params(load(folder, "unet", variant="fp16"), rounded)


def test_bfloat16_files_load(folder: Path) -> None:
    expected = round_params(load(folder, "vae"), ml_dtypes.bfloat16)
    edit_tensors(
        folder / FILES["vae"],
        lambda tensors: {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()},
    )
    assert_same_params(load(folder, "vae"), expected)


def test_only_the_unet_is_held_in_the_compute_dtype(folder: Path) -> None:
    """And its norms are not: their parameters are kilobytes."""
    model = base_model.open_model(str(folder), dtype=jnp.bfloat16)
    for component in ("text_encoder", "vae"):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(model.load(component))}
        assert dtypes == {np.dtype(np.float32)}
    params = model.load("unet")
    assert params["conv_in"]["kernel"].dtype == jnp.bfloat16
    assert params["conv_norm_out"]["scale"].dtype == jnp.float32
    exact = load(folder, "unet")
    rounded = jax.tree.map(
        lambda p, old: np.asarray(old).astype(p.dtype), params, exact
    )
    assert_same_params(params, rounded)


def split_in_shards(path: Path, variant: str = "") -> Path:
    """A weights file to two shards and their index, named as diffusers names them."""
    tensors, stem = load_file(path), path.name.removesuffix(".safetensors")
    keys = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        shard = f"{stem}{variant}-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, path.with_name(shard))
        weight_map |= dict.fromkeys(part, shard)
    index = path.with_name(f"{stem}.safetensors.index{variant}.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    path.unlink()
    return index


@pytest.mark.parametrize("variant", (None, "fp16"))
def test_shards_load_as_one_file(folder: Path, variant: str | None) -> None:
    expected = load(folder, "unet")
    split_in_shards(folder / FILES["unet"], f".{variant}" if variant else "")
    assert_same_params(load(folder, "unet", variant=variant), expected)


def test_what_is_split_over_devices_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    tensors = sources.DiffusersFolder.tensors

    def watched(source: sources.DiffusersFolder, part: str) -> Iterator[Tensor]:
        for tensor in tensors(source, part):

            def read_one(tensor: Tensor = tensor) -> np.ndarray:
                read.append(tensor.key)
                return tensor.read()

            yield tensor._replace(read=read_one)

    expected = load(folder, "unet")
    monkeypatch.setattr(sources.DiffusersFolder, "tensors", watched)
    layout = functools.partial(sharding.over_fsdp, sharding.make_mesh(fsdp=4))
    params = base_model.open_model(str(folder)).load("unet", layout)
    assert_same_params(params, expected)
    assert sorted(read) == sorted(load_file(folder / FILES["unet"]))
    split = [p for p in jax.tree.leaves(params) if not p.is_fully_replicated]
    assert len(split) > 100
    for leaf in split:
        assert all(4 * s.data.size == leaf.size for s in leaf.addressable_shards)


def test_shards_that_are_missing_are_named(folder: Path) -> None:
    index = split_in_shards(folder / FILES["unet"])
    shard = "diffusion_pytorch_model-00002-of-00002.safetensors"
    index.with_name(shard).unlink()
    with pytest.raises(UserError, match=re.escape(f"{index.name}: names {shard}")):
        load(folder, "unet")


def test_a_key_in_two_shards_is_doubled(folder: Path) -> None:
    index = split_in_shards(folder / FILES["unet"])
    first, second = sorted(index.parent.glob("*-of-00002.safetensors"))
    key, value = next(iter(load_file(first).items()))
    edit_tensors(second, lambda tensors: {**tensors, key: value})
    with pytest.raises(UserError, match=f"1 doubled: {re.escape(key)}"):
        load(folder, "unet")


@pytest.mark.parametrize(
    "piece",
    [
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_or_broken_configuration_is_named(folder: Path, piece: str) -> None:
    (folder / piece).write_text("{")
    with pytest.raises(UserError, match=f"{re.escape(piece)}: not readable JSON"):
        base_model.open_model(str(folder))
    (folder / piece).unlink()
    with pytest.raises(UserError, match=f"{re.escape(piece)}: no such file"):
        base_model.open_model(str(folder))


@pytest.mark.parametrize("component", FILES)
def test_missing_weights_say_what_is_there(folder: Path, component: str) -> None:
    path = folder / FILES[component]
    path.rename(path.with_suffix(".msgpack"))
    with pytest.raises(UserError) as raised:
        load(folder, component)
    assert f"expected {path.name}, found {path.stem}.msgpack" in str(raised.value)


@pytest.mark.parametrize("content", (b"", b"version https://git-lfs", None))
def test_a_weights_file_that_is_none_is_named(
    folder: Path, content: bytes | None
) -> None:
    """Empty, a Git LFS pointer, and a download that was cut short (None)."""
    path = folder / FILES["unet"]
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(
        UserError, match=f"{re.escape(str(path))}: expected a safetensors file"
    ):
        load(folder, "unet")


@pytest.mark.parametrize(
    ("piece", "settings", "told"),
    [
        ("text_encoder", {"model_type": "t5"}, "'t5'"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("text_encoder", {"hidden_size": 64}, "hidden_size 64"),
        (
            "unet",
            {"addition_embed_type": "text_time"},
            "text_encoder_2/config",
        ),
        ("unet", {"addition_embed_type": "text_image"}, "addition_embed_type"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet", {"in_channels": 5}, "unet takes 5 channels, the vae makes 4"),
        ("unet", {"down_block_types": ["AttnDownBlock2D"] * 2}, "AttnDownBlock2D"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
        ("vae", {"shift_factor": 0.1159}, "shift_factor"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean and latents_std, found one"),
        ("vae", {"latents_mean": [0.0], "latents_std": [1.0]}, "expected 4 entries"),
        ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "AttnUpDecoder"),
    ],
)
def test_another_family_is_refused_before_weights_are_read(
    folder: Path, piece: str, settings: dict[str, Any], told: str
) -> None:
    edit_config(folder / piece / "config.json", **settings)
    for path in FILES.values():
        (folder / path).unlink()
    with pytest.raises(UserError) as raised:
        base_model.open_model(str(folder))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_neither_folder_nor_repository_is_told() -> None:
    with pytest.raises(UserError, match=r"no folder './not/a/folder'"):
        base_model.open_model("./not/a/folder")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, empty, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_repository_in_the_cache_needs_no_network(
    folder: Path, offline: Path
) -> None:
    commit = "0" * 40
    repository = offline / "models--somebody--sd1"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    assert_same_params(
        base_model.open_model("somebody/sd1").load("vae"), load(folder, "vae")
    )


def test_a_repository_out_of_reach_is_told(offline: Path) -> None:
    with pytest.raises(UserError, match="cannot fetch 'somebody/sd1' from the Hub"):
        base_model.open_model("somebody/sd1")


@pytest.mark.parametrize("component", FILES)
def test_saved_params_are_the_files_of_pytorch(
    folder: Path, tmp_path: Path, component: str
) -> None:
    params = load(folder, component)
    config = json.loads((folder / component / "config.json").read_text())
    save_params(tmp_path / component, config, params, np.dtype(np.float32))
    saved = load_file(tmp_path / FILES[component])
    theirs = load_file(folder / FILES[component])
    prefix = "text_model." if component == "text_encoder" else ""
    assert saved.keys() == {prefix + key for key in theirs}
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(saved[prefix + key], tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", ("safetensors", "bin"))
def test_loading_in_bfloat16_allocates_little_more_than_the_params(
    folder: Path, suffix: str
) -> None:
    """At most 0.7 of the bytes of the float32 files; the params alone are 0.5."""
    configs = {
        name: json.loads((folder / name / "config.json").read_text()) for name in FILES
    }
    configs["unet"]["block_out_channels"] = [128, 256]
    configs["scheduler"] = known.TINY["scheduler"]
    params = random_params(configs, "unet")
    save_params(folder / "unet", configs["unet"], params, np.dtype(np.float32))
    size = (folder / FILES["unet"]).stat().st_size
    assert size > 60e6
    if suffix == "bin":
        path = folder / FILES["unet"]
        torch_zip.save(path.with_suffix(".bin"), load_file(path))
        path.unlink()
    assert 0.45 * size < loading_memory.of_unet(folder) < 0.7 * size
