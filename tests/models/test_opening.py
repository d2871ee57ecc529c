"""Parts from several places, and files by name, here or on the Hub."""

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import single_files
from safetensors.numpy import load_file

from ti_flax.hub import snapshot
from ti_flax.models import base_model, clip_tokenizer
from ti_flax.models.opening import Choices
from ti_flax.runtime.errors import UserError

VAE, TEXT = "first_stage_model.", "cond_stage_model."
FIRST, SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "model"
        single_files.write_folder(folder, single_files.small_configs(kind))
        return folder

    return make


@pytest.fixture
def write(folders, tmp_path: Path) -> Callable[..., Path]:
    """(kind, name, parts' prefixes) to a file with these, and none with all."""

    def make(kind: str, name: str, *prefixes: str, strip: bool = False) -> Path:
        own = single_files.small_configs(kind)
        tensors = single_files.tensors_of(folders(kind), own)
        kept = {k: v for k, v in tensors.items() if k.startswith(prefixes or ("",))}
        if strip:
            (prefix,) = prefixes
            kept = {key.removeprefix(prefix): array for key, array in kept.items()}
        return single_files.save(tmp_path / name, kept)

    return make


def assert_same(ours: base_model.BaseModel, theirs: Path, *parts: str) -> None:
    """Under the same keys; that such tensors load, other tests say."""
    for part in parts:
        arrays = {tensor.key: tensor.read() for tensor in ours.source.tensors(part)}
        expected = load_file(theirs / part / single_files.FILES[part])
        assert arrays.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array)


def other_vae(folder: Path, place: Path) -> Path:
    """The folder's VAE, every number doubled."""
    shutil.copytree(folder / "vae", place)
    file = place / single_files.FILES["vae"]
    tensors = load_file(file)
    single_files.save(file, {key: 2 * array for key, array in tensors.items()})
    return place


UNET = "model.diffusion_model."
PARTS = [
    # What the model's file lacks, and what gives it.
    ("sd1", (UNET, TEXT), {"vae": "folder"}),
    ("sd1", (UNET, TEXT), {"vae": "own folder"}),
    ("sd1", (UNET, TEXT), {"vae": "whole file"}),
    ("sd1", (UNET, TEXT), {"vae": "file"}),
    ("sd1", (UNET, TEXT), {"vae": "bare file"}),
    ("sd1", (UNET, TEXT), {"vae": "diffusers file"}),
    ("sd1", (UNET, VAE), {"text_encoder": "folder"}),
    ("sd1", (UNET, VAE), {"text_encoder": "own folder"}),
    ("sd1", (UNET, VAE), {"text_encoder": "whole file"}),
    ("sd1", (UNET, VAE), {"text_encoder": "diffusers file"}),
    ("sd2", (UNET, VAE), {"text_encoder": "whole file"}),
    ("sdxl", (UNET, VAE), {"text_encoder": "folder"}),
    ("sdxl", (UNET, VAE), {"text_encoder": "whole file"}),
    (
        "sdxl",
        (UNET, VAE),
        {"text_encoder": "diffusers file", "text_encoder_2": "bare file"},
    ),
    (
        "sdxl",
        (UNET, VAE, FIRST),
        {"text_encoder_2": "diffusers file"},
    ),
    ("sdxl", (UNET, FIRST, SECOND), {"vae": "folder"}),
    ("sdxl", (UNET,), {"text_encoder": "whole file", "vae": "whole file"}),
    ("sdxl", (), {"vae": "folder"}),
]
PREFIXES = {"vae": VAE, "text_encoder": TEXT, "text_encoder_2": SECOND + "model."}


def given(kind: str, part: str, how: str, folder: Path, write, tmp_path: Path) -> str:
    match how:
        case "folder":
            return str(folder)
        case "own folder":
            return str(shutil.copytree(folder / part, tmp_path / f"own-{part}"))
        case "whole file":
            return str(write(kind, "whole.safetensors"))
        case "file":
            return str(write(kind, f"{part}.safetensors", PREFIXES[part]))
        case "bare file":
            name = f"{part}.safetensors"
            return str(write(kind, name, PREFIXES[part], strip=True))
    return str(folder / part / single_files.FILES[part])


@pytest.mark.parametrize("case", PARTS, ids=lambda case: f"{case[0]}-{case[2]}")
def test_a_part_comes_from_where_the_key_says(
    case: tuple, folders, write, tmp_path: Path
) -> None:
    kind, there, asked = case
    folder = folders(kind)
    choices = {
        part: given(kind, part, how, folder, write, tmp_path)
        for part, how in asked.items()
    }
    file = write(kind, "model.safetensors", *there)
    model = base_model.open_model(str(file), choices=Choices(**choices))
    whole = base_model.open_model(str(folder))
    assert model.family.parts == whole.family.parts
    assert model.family.scale == whole.family.scale
    assert_same(model, folder, *model.family.parts)
    assert model.tokenizer(model.family.text_encoders[0]).is_dir()


def test_a_part_of_its_own_is_taken_in_place_of_the_models(
    folders, write, tmp_path: Path
) -> None:
    folder = folders("sd1")
    vae = other_vae(folder, tmp_path / "vae")
    for base in (folder, write("sd1", "model.safetensors")):
        plain = base_model.open_model(str(base))
        other = base_model.open_model(str(base), choices=Choices(vae=str(vae)))
        ours, theirs = (
            m.load("vae")["decoder"]["conv_in"]["bias"] for m in (other, plain)
        )
        np.testing.assert_array_equal(ours, 2 * theirs)
        assert other.fingerprint() != plain.fingerprint()
        # What is not used does not count.
        assert other.source.fingerprint(["unet"]) != other.fingerprint()


def test_the_fingerprint_of_a_file_is_its_sum(write) -> None:
    file = write("sd1", "model.safetensors")
    model = base_model.open_model(str(file))
    plain = hashlib.sha256(file.read_bytes()).hexdigest()
    assert model.fingerprint() == plain
    # What may decide counts as well.
    file.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}")
    said = base_model.open_model(str(file))
    assert said.scheduler["prediction_type"] == "v_prediction"
    assert said.fingerprint() not in (plain, "")


@pytest.mark.parametrize(
    ("kind", "name", "pad"),
    [
        ("sd1", "tokenizer", clip_tokenizer.END),
        ("sd2", "tokenizer", "!"),
        ("sdxl", "tokenizer", clip_tokenizer.END),
        ("sdxl", "tokenizer_2", "!"),
    ],
)
def test_tokenizers_come_from_the_package(kind: str, name: str, pad: str, write):
    model = base_model.open_model(str(write(kind, "model.safetensors")))
    assert model.source.tokenizer(name) == clip_tokenizer.folder(pad)


def test_the_tokenizer_of_a_text_encoder_from_elsewhere_is_its_own(
    folders, write, tmp_path: Path
) -> None:
    file = write("sd1", "model.safetensors", UNET, VAE)
    folder = folders("sd1")
    model = base_model.open_model(str(file), choices=Choices(text_encoder=str(folder)))
    assert model.source.tokenizer("tokenizer") == folder / "tokenizer"


WRONG = [
    ({"vae": "nowhere"}, "vae: no folder 'nowhere', and it is no Hub"),
    ({"vae": "nowhere.safetensors"}, "vae: no file 'nowhere.safetensors'; give a file"),
    ({"vae": "."}, "vae: . has neither a folder vae nor a config.json of its own"),
    ({"text_encoder": "."}, "text_encoder: . has neither a folder text_encoder nor"),
    ({"vae": "TEXT"}, "has no vae of Stable Diffusion 1.x, its tensors are"),
    ({"text_encoder": "VAE"}, "has no text_encoder of Stable Diffusion 1.x, its"),
    ({"text_encoder": "SD2"}, "the unet's cross_attention_dim 64 is not the text enc"),
    ({"vae": "XL"}, None),
    ({"ema": True}, "is no single file; of a folder, variant says which weights"),
    ({"text_encoder_2": "TEXT"}, "has one text encoder; leave it out, or give an SDXL"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: str(case[0]))
def test_what_is_wrong_with_a_part_is_told(
    case: tuple, folders, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choices, told = case
    places = {
        "TEXT": folders("sd1") / "text_encoder" / "model.safetensors",
        "VAE": folders("sd1") / "vae" / single_files.FILES["vae"],
        "SD2": folders("sd1").parent / "wide",
        "XL": folders("sdxl"),
    }
    if "SD2" in choices.values():
        wide = places["SD2"]
        shutil.copytree(folders("sdxl") / "text_encoder_2", wide, dirs_exist_ok=True)
    choices = {
        k: str(places.get(v, v)) if k != "ema" else v for k, v in choices.items()
    }
    opened = functools.partial(
        base_model.open_model, str(folders("sd1")), choices=Choices(**choices)
    )
    if told is None:
        # An SDXL VAE is of the same shape; its own scale comes with its config.json.
        assert opened().family.scale.factor == 0.13025
        return
    with pytest.raises(UserError) as raised:
        opened()
    assert told in str(raised.value) and "\n" not in str(raised.value)


# The Hub


def test_a_file_of_the_hub_is_read(
    folders, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("sd1", "model.safetensors")
    asked = []

    def download(
        name: str, revision: str | None, allow_patterns: list[str], **_: object
    ) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = base_model.open_model("somebody/models/model.safetensors", "v2")
    assert_same(model, folders("sd1"), "vae")
    assert asked == [("somebody/models", "v2", ["model.safetensors"])]
    with pytest.raises(UserError, match=r"no file .*other\.safetensors', here or in"):
        base_model.open_model("somebody/models/other.safetensors")


def test_a_vae_of_the_hub_is_downloaded_alone(
    folders, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shutil.copytree(folders("sd1") / "vae", tmp_path / "snapshots" / "commit")
    names = ["config.json", single_files.FILES["vae"], "README.md", "other.bin"]
    asked = []

    def download(
        name: str, revision: str | None, allow_patterns: list[str], **_: object
    ) -> str:
        asked.append((name, revision, sorted(allow_patterns)))
        return str(cache)

    listing = snapshot.Listing("commit", dict.fromkeys(names))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(snapshot, "list_files", lambda *_: listing)
    file = write("sd1", "model.safetensors", UNET, TEXT)
    choices = Choices(vae="somebody/vae")
    model = base_model.open_model(str(file), choices=choices)
    assert_same(model, folders("sd1"), "vae")
    settings, weights = asked
    assert settings[:2] == ("somebody/vae", None)
    assert {"config.json", "vae/config.json"} <= set(settings[2])
    assert not any(name.endswith("safetensors") for name in settings[2])
    assert weights == ("somebody/vae", "commit", [single_files.FILES["vae"]])
