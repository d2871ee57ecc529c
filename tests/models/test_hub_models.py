"""Base models of the Hub: what is fetched, and what a Hub that fails makes of it."""

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from hub_server import Fault, Hub

from ti_flax.models import base_model, random_model
from ti_flax.runtime import log
from ti_flax.runtime.errors import UserError
from ti_flax.runtime.regular_files import MAX_JSON_BYTES

# huggingface_hub 2.4 calls its HTTP library in a way that the latter no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "somebody/model"
D = "diffusion_pytorch_model"
SETTINGS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
}
# Of stable-diffusion-v1-5, which are 40 GB.
WEIGHTS = [
    f"{stem}{variant}.{suffix}"
    for variant in ("", ".fp16")
    for stem, suffix in (
        ("text_encoder/model", "safetensors"),
        ("text_encoder/pytorch_model", "bin"),
        (f"unet/{D}", "safetensors"),
        (f"unet/{D}", "bin"),
        (f"vae/{D}", "safetensors"),
        (f"vae/{D}", "bin"),
    )
]
OTHERS = [
    ".gitattributes",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    f"unet/{D}.non_ema.safetensors",
    "tokenizer/tokenizer.onnx",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants, utils

    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    state = hub_server.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_login"))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    utils.close_session()
    yield state
    state.stop()
    utils.close_session()


def publish(hub: Hub, folder: Path, *more: str) -> dict[str, bytes]:
    """The files of a folder, and more names with nothing that is read."""
    hub.repositories[NAME] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    } | {name: f"another {name}".encode() for name in more}
    return hub.repositories[NAME]


def stop(hub: Hub) -> None:
    from huggingface_hub import utils

    hub.stop()
    utils.close_session()  # with its connections


def fetched(hub: Hub) -> set[str]:
    pattern = re.compile(rf"GET /{NAME}/resolve/\w+/(.+)")
    return {found[1] for found in map(pattern.fullmatch, hub.requests) if found}


@pytest.mark.parametrize(
    ("variant", "taken_away", "weights"),
    [
        (None, "", "model.safetensors"),
        ("fp16", "", "model.fp16.safetensors"),
        ("non_ema", "", "model.safetensors"),
        (None, r"safetensors$", "pytorch_model.bin"),
        ("fp16", r"fp16.safetensors$", "pytorch_model.fp16.bin"),
        ("fp16", r"text_encoder/.*fp16", "model.safetensors"),
        (None, r"model(.non_ema)?.(safetensors|bin)$", "model.fp16.safetensors"),
    ],
)
def test_only_the_files_that_are_read_are_fetched(
    hub: Hub, tiny_model: Path, variant: str | None, taken_away: str, weights: str
) -> None:
    files = publish(hub, tiny_model, *WEIGHTS, *OTHERS)
    if taken_away:
        for name in [name for name in files if re.search(taken_away, name)]:
            del files[name]
    base_model.open_model(NAME, variant=variant, download_weights=False)
    assert fetched(hub) == SETTINGS
    base_model.open_model(NAME, variant=variant)
    diffusion = weights.replace("pytorch_model", "model").replace("model", D)
    unet, vae = f"unet/{diffusion}", f"vae/{diffusion}"
    if taken_away.startswith("text"):
        unet, vae = f"unet/{D}.fp16.safetensors", f"vae/{D}.fp16.safetensors"
    if variant == "non_ema":
        unet = f"unet/{D}.non_ema.safetensors"
    assert fetched(hub) - SETTINGS == {f"text_encoder/{weights}", unet, vae}


@pytest.mark.parametrize(
    ("variant", "taken_away", "told"),
    [
        ("fp61", "", f"{NAME}/text_encoder: found model.fp16.safetensors, "),
        ("fp61", "", "no part of the model has files of variant 'fp61'"),
        (None, f"{D}.(safetensors|bin)$", "set variant to 'fp16' or 'non_ema'"),
        (None, r"^vae/.*(safetensors|bin)$", f"{NAME}/vae: expected {D}.safetensors"),
    ],
)
def test_what_the_hub_has_not_costs_no_weights(
    hub: Hub, tiny_model: Path, variant: str | None, taken_away: str, told: str
) -> None:
    files = publish(hub, tiny_model, *WEIGHTS, *OTHERS)
    for name in [name for name in files if taken_away and re.search(taken_away, name)]:
        del files[name]
    with pytest.raises(UserError, match=re.escape(told)):
        base_model.open_model(NAME, variant=variant)
    assert fetched(hub) == SETTINGS


def test_a_model_of_the_hub_loads_and_then_needs_none(
    hub: Hub, tiny_model: Path
) -> None:
    publish(hub, tiny_model)
    expected = base_model.open_model(str(tiny_model)).fingerprint()
    assert base_model.open_model(NAME).fingerprint() == expected
    stop(hub)
    assert base_model.open_model(NAME).fingerprint() == expected


def test_shards_are_fetched(hub: Hub, tiny_model: Path) -> None:
    files = publish(hub, tiny_model)
    shards = {f"unet/{D}-0000{n}-of-00002.safetensors" for n in (1, 2)}
    whole = files.pop(f"unet/{D}.safetensors")
    weight_map = {str(n): name.split("/")[1] for n, name in enumerate(sorted(shards))}
    index = f"unet/{D}.safetensors.index.json"
    files[index] = json.dumps({"weight_map": weight_map}).encode()
    files |= {name: name.encode() + whole for name in shards}
    base_model.open_model(NAME)
    assert fetched(hub) >= {index, *shards}


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ("text_encoder/config.json", {"model_type": "t5"}, "'t5'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "cosine"}, "'cosine'"),
        ("unet/config.json", None, "unet: a 'FluxPipeline' has none"),
        ("text_encoder/config.json", None, "text_encoder/config.json: no such file"),
    ],
)
def test_another_family_costs_no_weights(
    hub: Hub, tiny_model: Path, file: str, change: dict | None, told: str
) -> None:
    files = publish(hub, tiny_model)
    if change is None:
        del files[file]
        index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "Flux"]}
        files["model_index.json"] = json.dumps(index).encode()
    else:
        files[file] = json.dumps({**json.loads(files[file]), **change}).encode()
    with pytest.raises(UserError, match=re.escape(told)):
        base_model.open_model(NAME)
    assert not {
        name for name in fetched(hub) if name.endswith((".safetensors", ".bin"))
    }


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", f"vae/{D}.safetensors.index.json", "tokenizer/vocab.json"],
)
def test_settings_that_are_too_long_are_not_fetched(
    hub: Hub, tiny_model: Path, name: str
) -> None:
    publish(hub, tiny_model)[name] = b" " * (MAX_JSON_BYTES + 1)
    with pytest.raises(UserError, match=re.escape(f"{NAME}/{name} has 8388609 bytes")):
        base_model.open_model(NAME)
    assert not fetched(hub)


HTML = b"<!DOCTYPE html><title>Sign in</title>" + b"<p>\x1b[31mwait</p>" * 1000
INFO, TREE, RESOLVE = "/api/models/", "/tree/", "/resolve/"
FAULTS = {
    "HTML instead of the repository": Fault(INFO, HTML, 99),
    "HTML instead of the list of files": Fault(TREE, HTML, 99),
    "JSON of another kind": Fault(INFO, b"[1, 2]", 99),
    "JSON without what was asked for": Fault(INFO, b"{}", 99),
    "a commit that is no text": Fault(INFO, b'{"id": "a", "sha": 5}', 99),
    "a commit that leads out": Fault(
        INFO, b'{"id": "a", "sha": "../../out", "siblings": []}', 99
    ),
    "a number": Fault(INFO, b"5", 99),
    "nothing": Fault(INFO, b"", 99),
    "dropped": Fault("", "drop", 99),
    "dropped on the way": Fault(RESOLVE, "half", 99),
    "no answer": Fault("", "wait", 99),
    "no answer for a file": Fault(RESOLVE, "wait", 99),
    "refused": Fault("", 403, 99),
    "not there": Fault("", 404, 99),
    "gated": Fault("", 401, 99, {"X-Error-Code": "GatedRepo"}),
    "broken": Fault("", 500, 99),
    "too many requests": Fault("", 429, 99, {"Retry-After": "1"}),
    "a hostile message": Fault(
        "", 403, 99, {"X-Error-Message": "\x1b[31m" + "x" * 10000}
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_hub_that_fails_is_told_in_one_line(
    hub: Hub, tiny_model: Path, kind: str, capfd: pytest.CaptureFixture
) -> None:
    publish(hub, tiny_model)
    hub.faults.append(FAULTS[kind])
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        base_model.open_model(NAME)
    line = str(raised.value)
    assert line.startswith(
        f"pretrained_model_name_or_path: cannot fetch '{NAME}' from the Hub ("
    )
    assert line.isprintable() and len(line) < 520
    assert time.monotonic() - began < 60


def test_weights_that_are_html_are_told(hub: Hub, tiny_model: Path) -> None:
    files = publish(hub, tiny_model)
    files[f"unet/{D}.safetensors"] = HTML
    model = base_model.open_model(NAME)
    with pytest.raises(UserError, match="expected a safetensors file, found one that"):
        model.load("unet")


def test_settings_that_are_html_are_told(hub: Hub, tiny_model: Path) -> None:
    publish(hub, tiny_model)["vae/config.json"] = HTML
    with pytest.raises(UserError, match="not readable JSON"):
        base_model.open_model(NAME)


def test_weights_that_are_not_cached_need_the_network(
    hub: Hub, tiny_model: Path
) -> None:
    publish(hub, tiny_model)
    base_model.open_model(NAME, download_weights=False)
    stop(hub)
    with pytest.raises(UserError, match=f"cannot fetch '{NAME}' from the Hub"):
        base_model.open_model(NAME)
    base_model.open_model(NAME, download_weights=False)


def test_of_latent_diffusion_its_own_folders_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    """As CompVis/ldm-text2im-large-256 has them, with weights of torch.save alone."""
    random_model.write_random_model(tmp_path / "model", "tiny_ldm")
    files = publish(hub, tmp_path / "model", "README.md", ".gitattributes")
    weights = {
        f"{part}/{stem}.bin"
        for part, stem in (("bert", "pytorch_model"), ("unet", D), ("vqvae", D))
    }
    for name in [name for name in files if name.endswith(".safetensors")]:
        del files[name]
    files |= {name: name.encode() for name in weights}
    base_model.open_model(NAME, download_weights=False)
    settings = {f"{part}/config.json" for part in ("bert", "unet", "vqvae")}
    settings |= {"model_index.json", "scheduler/scheduler_config.json"}
    settings |= {"tokenizer/vocab.txt", "tokenizer/tokenizer_config.json"}
    assert fetched(hub) == settings
    base_model.open_model(NAME)
    assert fetched(hub) - settings == weights


def opened_by_a_command(hub: Hub, capfd: pytest.CaptureFixture, name: str) -> list[str]:
    """What a command says on the console, which is no terminal, as it opens a model."""
    log.show_log()
    capfd.readouterr()
    base_model.open_model(name)
    said = capfd.readouterr()
    assert not said.out and "\r" not in said.err
    return said.err.splitlines()


def test_a_download_is_told_once_with_its_amount(
    hub: Hub, tiny_model: Path, capfd: pytest.CaptureFixture
) -> None:
    files = publish(hub, tiny_model, *OTHERS)
    weights = [f"{part}/{D}.safetensors" for part in ("unet", "vae")]
    weights.append("text_encoder/model.safetensors")
    size = sum(len(files[name]) for name in weights)
    (line,) = opened_by_a_command(hub, capfd, NAME)
    told = re.fullmatch(rf"downloading {NAME}: 3 files, ([\d.]+) MB", line)
    assert told and abs(float(told[1]) - size / 1e6) < 0.01
    # What the cache has is not downloaded, and of one file more only that one.
    assert opened_by_a_command(hub, capfd, NAME) == []
    (folder,) = hub_cache().glob("models--*/snapshots/*")
    (folder / "vae" / f"{D}.safetensors").unlink()
    (line,) = opened_by_a_command(hub, capfd, NAME)
    assert line.startswith(f"downloading {NAME}: 1 file, ")


def test_where_the_hub_is_busy_its_client_says_nothing(
    hub: Hub, tiny_model: Path, capfd: pytest.CaptureFixture
) -> None:
    """It would tell of each request that it repeats."""
    publish(hub, tiny_model)
    hub.faults.append(Fault(RESOLVE, 503, 2))
    (line,) = opened_by_a_command(hub, capfd, NAME)
    assert line.startswith(f"downloading {NAME}: 3 files, ")


def test_a_download_of_a_minute_has_lines_that_count_its_bytes(
    hub: Hub,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    files = publish(hub, tiny_model)
    clock = itertools.count(0, 20)  # seconds, at each look
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    _, *lines = opened_by_a_command(hub, capfd, NAME)
    total = sum(len(data) for name, data in files.items() if "safetensors" in name)
    amount = r"([\d.]+)([kM])B"
    counts = [
        re.match(f"downloading: {amount} of {amount} in ", line) for line in lines
    ]
    assert counts and all(counts)
    done = [
        float(count[1]) * {"k": 1e3, "M": 1e6}[count[2]]
        for count in filter(None, counts)
    ]
    assert done == sorted(done)
    assert abs(done[-1] - total) < 0.01e6


def hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
