"""A model in one file is its folder, bit for bit, whatever its family and numbers."""

import functools
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import loading_memory
import ml_dtypes
import numpy as np
import pytest
import single_files
from safetensors.numpy import load_file
from single_files import Arrays

from ti_flax.diffusion import edm
from ti_flax.models import (
    base_model,
    families,
    known,
    single_file,
    single_file_contents,
)
from ti_flax.models.torch_params import Params, load_params
from ti_flax.pickles import torch_zip
from ti_flax.runtime.errors import UserError

KINDS = single_files.KINDS
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
UNET = "model.diffusion_model."
DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64")


class Made(NamedTuple):
    folder: Path
    configs: dict[str, dict[str, Any]]
    # The weights of each part under diffusers' keys, and all under those of one file.
    parts: dict[str, Arrays]
    tensors: Arrays


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @functools.cache
    def make(kind: str) -> Made:
        folder = tmp_path_factory.mktemp(kind) / "model"
        configs = single_files.configs(kind)
        single_files.write_folder(folder, configs)
        parts = {
            part: load_file(single_files.folder_of(folder, part) / file)
            for part, file in single_files.FILES.items()
            if part in configs
        }
        return Made(folder, configs, parts, single_files.tensors_of(folder, configs))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return functools.partial(single_files.save, tmp_path / "model.safetensors")


def arrays_of(opened: single_file.SingleFile, part: str) -> Arrays:
    tensors = list(opened.tensors(part))
    arrays = {tensor.key: tensor.read() for tensor in tensors}
    assert len(arrays) == len(tensors)
    for tensor in tensors:
        assert arrays[tensor.key].shape == tensor.shape
        assert arrays[tensor.key].dtype == tensor.dtype
    return arrays


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    """Bit for bit: bytes compare NaN and every type of numbers."""
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype and ours[key].shape == array.shape, key
        assert np.ascontiguousarray(ours[key]).tobytes() == array.tobytes(), key


def cast(arrays: Arrays, dtype: np.dtype) -> Arrays:
    return {
        key: array.astype(dtype) if array.dtype == np.float32 else array
        for key, array in arrays.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_tensors_of_its_folder(
    kind: str, dtype: str, made, write
) -> None:
    numbers = single_files.DTYPES[dtype]
    tensors = {**made(kind).tensors, **single_files.others(kind)}
    # One network's among the other's, as no program writes them.
    mixed = dict(sorted(cast(tensors, numbers).items()))
    opened = single_file.open_file(write(mixed))
    for part, arrays in made(kind).parts.items():
        assert_same(arrays_of(opened, part), cast(arrays, numbers))


@pytest.mark.parametrize("kind", KINDS)
def test_its_settings_make_the_networks_of_its_folder(kind: str, made, write) -> None:
    opened = single_file.open_file(write(made(kind).tensors))
    family = families.make_family(configs_of(opened))
    folder = families.make_family({"model_index": {}, **made(kind).configs})
    assert family.parts == folder.parts
    assert family.name == folder.name
    assert family.scale == folder.scale
    assert family.classes == folder.classes
    assert [e._replace(module=None) for e in family.text_encoders] == [
        e._replace(module=None) for e in folder.text_encoders
    ]


def configs_of(opened: single_file.SingleFile) -> dict[str, Any]:
    named = (*families.parts(opened.config("unet")), "scheduler", "model_index")
    return {part: opened.config(part) for part in named}


@pytest.mark.parametrize("kind", ("sd1", "sd2", "ldm", "sdxl"))
def test_its_params_are_those_of_its_folder(kind: str, made, write) -> None:
    opened = single_file.open_file(write(made(kind).tensors))
    family = families.make_family(configs_of(opened), BFLOAT16)
    folder = base_model.open_model(str(made(kind).folder), dtype=BFLOAT16)
    for part, module in family.parts.items():
        assert_same_params(load_params(opened, part, module), folder.load(part))


def assert_same_params(ours: Params, expected: Params) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# Keys of other programs


def renamed(arrays: Arrays, old: str, new: str) -> Arrays:
    return {
        new + key.removeprefix(old) if key.startswith(old) else key: array
        for key, array in arrays.items()
    }


def without_block_23(arrays: Arrays) -> Arrays:
    left = {k: v for k, v in arrays.items() if ".resblocks.23." not in k}
    assert len(left) < len(arrays)
    return left


def with_flat_attention(arrays: Arrays) -> Arrays:
    """The VAE's 1x1 convolutions as linear layers, or in one dimension."""
    prefix = "first_stage_model.decoder.mid.attn_1."
    changed = dict(arrays)
    for name, axes in (("q", 2), ("k", 3), ("v", 4), ("proj_out", 2)):
        key = f"{prefix}{name}.weight"
        assert arrays[key].ndim == 4
        changed[key] = arrays[key].reshape(arrays[key].shape[:axes])
    return changed


def with_turned_projection(arrays: Arrays) -> Arrays:
    prefix = "conditioner.embedders.1.model.text_projection"
    changed = {k: v for k, v in arrays.items() if k != prefix}
    changed[f"{prefix}.weight"] = np.ascontiguousarray(arrays[prefix].T)
    return changed


def with_projection_of_the_first(arrays: Arrays) -> Arrays:
    key = "conditioner.embedders.0.transformer.text_projection.weight"
    return {**arrays, key: np.ones((64, 64), np.float32)}


OTHER_KEYS: list[tuple[str, Callable[[Arrays], Arrays]]] = [
    # Of before transformers 4.
    (
        "sd1",
        lambda arrays: renamed(
            arrays,
            "cond_stage_model.transformer.text_model.",
            "cond_stage_model.transformer.",
        ),
    ),
    # As Stability's newer code saves 1.x and 2.x.
    (
        "sd1",
        lambda arrays: renamed(
            arrays, "cond_stage_model.transformer.", "conditioner.embedders.0.transfor"
            "mer.",
        ),
    ),
    (
        "sd2",
        lambda arrays: renamed(
            arrays, "cond_stage_model.model.", "conditioner.embedders.0.model."
        ),
    ),
    ("sd2", without_block_23),
    ("sd1", with_flat_attention),
    ("sdxl", with_flat_attention),
    ("sdxl", with_turned_projection),
    ("sdxl", with_projection_of_the_first),
    ("sd1", lambda arrays: dict(reversed(arrays.items()))),
]  # fmt: skip


@pytest.mark.parametrize("case", OTHER_KEYS, ids=lambda case: case[0])
def test_other_programs_keys_are_the_same(
    case: tuple[str, Callable[[Arrays], Arrays]], made, write
) -> None:
    kind, change = case
    opened = single_file.open_file(write(change(made(kind).tensors)))
    for part, arrays in made(kind).parts.items():
        assert_same(arrays_of(opened, part), arrays)


def test_a_bare_unet_is_one(made, write) -> None:
    arrays = made("sdxl").tensors
    bare = {
        key.removeprefix(UNET): array
        for key, array in arrays.items()
        if key.startswith(UNET)
    }
    opened = single_file.open_file(write(bare))
    assert_same(arrays_of(opened, "unet"), made("sdxl").parts["unet"])
    assert opened.parts.keys() == {"unet"}


# Averages, scaled float8, what is missing, the channels of inpainting


def test_averages_are_taken_on_request_alone(made, write) -> None:
    arrays = made("sd1").tensors
    averages = single_files.averages(arrays)
    path = write({**arrays, **averages})
    plain, averaged = (single_file.open_file(path, ema) for ema in (False, True))
    expected = made("sd1").parts["unet"]
    count = len(expected)
    assert_same(arrays_of(plain, "unet"), expected)
    half = np.float32(0.5)
    assert_same(arrays_of(averaged, "unet"), {k: v + half for k, v in expected.items()})
    for part in ("text_encoder", "vae"):
        assert_same(arrays_of(averaged, part), made("sd1").parts[part])
    assert single_file_contents.has_averages(plain.contents)
    del averages["model_ema.diffusion_modelout2weight"]
    some = write({**arrays, **averages})
    with pytest.raises(UserError, match=rf"of {count - 1} of the UNet's {count} "):
        single_file.open_file(some, ema=True)
    with pytest.raises(
        UserError, match=f"of 0 of the UNet's {count} tensors; leave ema"
    ):
        single_file.open_file(write(arrays), ema=True)


@pytest.mark.parametrize("suffix", ("scale_weight", "weight_scale"))
@pytest.mark.parametrize("shape", ((), (1,), "rows"))
def test_scaled_float8_is_what_it_means(suffix: str, shape, made, write) -> None:
    """ComfyUI's: a linear layer's numbers in 8 bits, and a factor beside them."""
    arrays, scaled, expected = made("sdxl").tensors, {}, {}
    for key, array in arrays.items():
        scaled[key] = array
        if key.startswith(UNET) and array.ndim == 2 and key.endswith(".weight"):
            shape_of_scale = (len(array), 1) if shape == "rows" else shape
            scale = np.full(shape_of_scale, np.abs(array).max() / 448, np.float32)
            scaled[key] = (array / scale).astype(F8)
            scaled[f"{key.removesuffix('weight')}{suffix}"] = scale
            expected[key] = scaled[key].astype(np.float32) * scale
    scaled["scaled_fp8"] = np.zeros(2, F8)
    scaled[f"{UNET}scaled_fp8"] = np.zeros(0, F8)
    scaled[f"{UNET}time_embed.0.scale_input"] = np.float32(1).reshape(())
    opened = single_file.open_file(write(scaled))
    kept = single_files.save(opened.path.with_name("full"), {**arrays, **expected})
    assert len(expected) > 20
    for part in made("sdxl").parts:
        ours, theirs = opened, single_file.open_file(kept)
        assert_same(arrays_of(ours, part), arrays_of(theirs, part))


@pytest.mark.parametrize(
    ("kind", "prefix", "told"),
    [
        ("sd1", "first_stage_model.", "has no vae; set vae to a folder"),
        ("sdxl", "first_stage_model.", "has no vae; set vae to a folder"),
        ("sd1", "cond_stage_model.", "no text_encoder; set text_encoder to a folder"),
        ("sd2", "cond_stage_model.", "no text_encoder; set text_encoder to a folder"),
        ("sdxl", "conditioner.embedders.1.", "no text_encoder_2; set text_encoder to"),
    ],
)
def test_a_part_that_is_missing_is_asked_for(
    kind: str, prefix: str, told: str, made, write
) -> None:
    arrays = made(kind).tensors
    left = {key: v for key, v in arrays.items() if not key.startswith(prefix)}
    opened = single_file.open_file(write(left))
    with pytest.raises(UserError) as raised:
        configs_of(opened)
    assert told in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [
        ("sd1", "StableDiffusionInpaintPipeline"),
        ("sd2", "StableDiffusionInpaintPipeline"),
        ("sdxl", "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_nine_channels_are_an_inpainting_model(
    kind: str, pipeline: str, made, write
) -> None:
    arrays = dict(made(kind).tensors)
    key = f"{UNET}input_blocks.0.0.weight"
    arrays[key] = np.concatenate([arrays[key]] * 3, axis=1)[:, :9]
    opened = single_file.open_file(write(arrays))
    assert opened.prediction.prediction_type == "epsilon"
    family = families.make_family(configs_of(opened))
    assert (family.pipeline, family.moment_channels) == (pipeline, 12)
    params = load_params(opened, "unet", family.denoiser.module)
    kernel = np.moveaxis(arrays[key], (2, 3), (0, 1)).swapaxes(2, 3)
    np.testing.assert_array_equal(params["conv_in"]["kernel"], kernel)
    load_params(opened, "vae", family.autoencoder.module)


def test_other_channels_are_told(made, write) -> None:
    arrays = dict(made("sd1").tensors)
    key = f"{UNET}input_blocks.0.0.weight"
    arrays[key] = np.concatenate([arrays[key]] * 2, axis=1)
    opened = single_file.open_file(write(arrays))
    with pytest.raises(UserError, match="the unet takes 8 channels, the vae makes 4"):
        families.make_family(configs_of(opened))


def test_playground_is_told_by_the_means_of_its_latents(made, write) -> None:
    mean = np.float32(known.PLAYGROUND["vae"]["latents_mean"]) + np.float32(0.5)
    std = np.float32(known.PLAYGROUND["vae"]["latents_std"])
    both = {"edm_mean": mean, "edm_std": std}
    opened = single_file.open_file(write({**made("sdxl").tensors, **both}))
    configs = configs_of(opened)
    assert configs["scheduler"] == known.PLAYGROUND["scheduler"]
    family = families.make_family(configs)
    assert isinstance(family.process, edm.Edm)
    assert family.scale.factor == 0.5
    np.testing.assert_array_equal(np.float32(family.scale.mean), mean)
    np.testing.assert_array_equal(np.float32(family.scale.std), std)
    assert family.parts.keys() == made("sdxl").parts.keys()
    # What no such file has is not read: SDXL's settings stay.
    for strange in ({"edm_mean": mean}, {**both, "edm_std": np.ones(65, np.float32)}):
        opened = single_file.open_file(write({**made("sdxl").tensors, **strange}))
        assert opened.config("scheduler")["_class_name"] == "EulerDiscreteScheduler"
        assert opened.config("vae")["scaling_factor"] == 0.13025


def test_the_refiner_is_named(made, write) -> None:
    arrays = made("sdxl").tensors
    left = {k: v for k, v in arrays.items() if "conditioner.embedders.0." not in k}
    first, second = "conditioner.embedders.0.model.", "conditioner.embedders.1.model."
    path = write(renamed(left, second, first))
    with pytest.raises(UserError, match="is SDXL's refiner, which goes on"):
        single_file.open_file(path)


# Damage


def damaged(change: Callable[[Arrays], object]) -> Callable[[Arrays], Arrays]:
    def spoil(arrays: Arrays) -> Arrays:
        spoilt = dict(arrays)
        change(spoilt)
        return spoilt

    return spoil


def shuffle(arrays: Arrays) -> Arrays:
    """Every tensor under the key of another."""
    moved = [*list(arrays.values())[7:], *list(arrays.values())[:7]]
    return dict(zip(arrays, moved, strict=True))


DAMAGE: list[tuple[str, Callable[[Arrays], Arrays]]] = [
    ("misshapen", shuffle),
    ("1 missing: conv_out.bias", damaged(lambda a: a.pop(f"{UNET}out.2.bias"))),
    (
        "1 unknown: strange.weight",
        damaged(lambda a: a.update({f"{UNET}strange.weight": np.ones(2, np.float32)})),
    ),
    (
        "missing: down_blocks.1.resnets.0.norm1.bias",
        damaged(lambda a: a.pop(f"{UNET}input_blocks.4.0.in_layers.0.bias")),
    ),
    (
        "misshapen: conv_norm_out.bias [3]",
        damaged(lambda a: a.update({f"{UNET}out.0.bias": np.ones(3, np.float32)})),
    ),
    (
        "not of floating point: conv_norm_out.bias int64",
        damaged(lambda a: a.update({f"{UNET}out.0.bias": np.ones(32, np.int64)})),
    ),
]


@pytest.mark.parametrize("case", DAMAGE, ids=lambda case: case[0][:20])
def test_a_file_that_was_put_together_wrongly_is_one_line(
    case: tuple[str, Callable[[Arrays], Arrays]], made, write
) -> None:
    told, spoil = case
    path = write(spoil(made("sd1").tensors))
    with pytest.raises(UserError) as raised:
        opened = single_file.open_file(path)
        family = families.make_family(configs_of(opened))
        for part, module in family.parts.items():
            load_params(opened, part, module)
    line = str(raised.value)
    assert line.isprintable() and len(line.replace(str(path), "FILE")) < 480
    assert told in line or case[1] is shuffle


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("container", ("safetensors", "ckpt"))
def test_loading_in_bfloat16_allocates_little_more_than_the_params(
    container: str, tmp_path: Path
) -> None:
    """At most 0.7 of the bytes of float32 weights; the params alone are 0.5."""
    own = single_files.small_configs("sd1")
    own["unet"]["block_out_channels"] = [128, 512]
    single_files.write_folder(tmp_path / "folder", own)
    tensors = single_files.tensors_of(tmp_path / "folder", own)
    size = sum(a.nbytes for key, a in tensors.items() if key.startswith(UNET))
    assert size > 60e6
    path = tmp_path / f"model.{container}"
    if container == "ckpt":
        torch_zip.save(path, {"state_dict": tensors})
    else:
        single_files.save(path, tensors)
    assert 0.45 * size < loading_memory.of_unet(path) < 0.7 * size


# diffusers' own rules


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_conversion_gives_the_same(kind: str, made, write) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        # What these libraries deprecate among themselves is not ours to mend.
        warnings.simplefilter("ignore")
        from diffusers.loaders import single_file_utils as theirs
    tensors, configs = made(kind).tensors, made(kind).configs
    opened = single_file.open_file(write(tensors))

    def checkpoint() -> dict:
        return {key: torch.from_numpy(array.copy()) for key, array in tensors.items()}

    converted = {
        "unet": theirs.convert_ldm_unet_checkpoint(checkpoint(), configs["unet"]),
        "vae": theirs.convert_ldm_vae_checkpoint(checkpoint(), configs["vae"]),
    }
    first = {
        "sd1": "cond_stage_model.transformer.",
        "sd2": "cond_stage_model.model.",
    }.get(kind, "conditioner.embedders.0.transformer.")
    if kind == "ldm":
        text = diffusers_bert(checkpoint(), configs["text_encoder"])
    elif kind == "sd2":
        text = theirs.convert_open_clip_checkpoint(None, checkpoint(), first)
    else:
        text = theirs.convert_ldm_clip_checkpoint(checkpoint(), first)
    converted["text_encoder"] = text
    if "text_encoder_2" in configs:
        second = "conditioner.embedders.1.model."
        text = theirs.convert_open_clip_checkpoint(None, checkpoint(), second)
        converted["text_encoder_2"] = text
    for part, found in converted.items():
        arrays = {key: tensor.numpy() for key, tensor in found.items()}
        assert_same(arrays_of(opened, part), arrays)


def diffusers_bert(checkpoint: dict[str, Any], config: dict[str, Any]) -> dict:
    """By diffusers' converter, which takes the module that latent diffusion made."""
    import torch
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion
    from diffusers.pipelines.stable_diffusion import convert_from_ckpt

    first = "cond_stage_model."
    weights = {
        key.removeprefix(first): torch.nn.Parameter(tensor)
        for key, tensor in checkpoint.items()
        if key.startswith(first)
    }
    for leaf in ("weight", "bias"):
        weights[f"transformer.to_logits.{leaf}"] = torch.nn.Parameter(torch.zeros(1))
    made = convert_from_ckpt.convert_ldm_bert_checkpoint(
        module_of(weights), pipeline_latent_diffusion.LDMBertConfig(**config)
    )
    state = made.state_dict().items()
    return {key: value for key, value in state if not key.startswith("to_logits")}


def module_of(weights: dict[str, Any]) -> Any:
    """Attributes by the names in keys; numbers are places in a list."""
    inner: dict[str, dict[str, Any]] = {}
    for key, weight in weights.items():
        name, _, rest = key.partition(".")
        inner.setdefault(name, {})[rest] = weight
    made = {name: w[""] if "" in w else module_of(w) for name, w in inner.items()}
    if not all(name.isdecimal() for name in made):
        return types.SimpleNamespace(**made)
    return [made.get(str(i)) for i in range(1 + max(map(int, made)))]
