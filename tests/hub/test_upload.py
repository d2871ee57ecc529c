"""Uploads and downloads by huggingface_hub's own client, from a Hub on this machine."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import hub_server
import numpy as np
import pytest
from hub_server import TOKEN as SECRET
from hub_server import Fault
from pydantic import SecretStr

from ti_flax.config import run_config as config_run_config
from ti_flax.formats import find
from ti_flax.hub import upload
from ti_flax.models import base_model
from ti_flax.publishing import concept_folder, model_card, push, results
from ti_flax.quickstart.settings import MODEL
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

# huggingface_hub 2.4 calls its HTTP library in a way that the latter no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "<duck-toy>"
ROWS = np.random.default_rng(0).standard_normal((2, 768), np.float32)
OWN_FILES = {
    "README.md",
    "learned_embeds.bin",
    "learned_embeds.safetensors",
    "token_identifier.txt",
    "type_of_concept.txt",
    "concept_images/0.jpeg",
    "concept_images/1.jpeg",
}


@pytest.fixture
def waits(monkeypatch):
    """The seconds waited for; no test waits them."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def server(monkeypatch, tmp_path, waits):
    from huggingface_hub import constants, utils

    state = hub_server.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = f"{state.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_login"))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    utils.close_session()
    yield state
    state.stop()
    utils.close_session()


@pytest.fixture
def folder(tmp_path):
    """What a run leaves, and much that is nobody else's business."""
    folder = tmp_path / "my-duck"
    learned = Embedding(
        TOKEN, {"text_encoder": ROWS}, provenance={"base_model": "owner/base"}
    )
    pictures = np.full((2, 16, 16, 3), 90, np.uint8)
    concept_folder.export_concept(folder, learned, "object", pictures)
    model_card.write(folder, learned, "object", "owner/base", "mit")
    (folder / "config.yaml").write_text(f"train_data_dir: {tmp_path}\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    for name in ("checkpoints/3", "samples", "unet", "logs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file.bin").write_bytes(b"private")
    (folder / "concept_images" / ".hidden.jpeg.1.tmp").write_bytes(b"")
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_concepts_own_files_and_no_others_arrive_whole(server, folder, tmp_path):
    before = content_of(folder)
    assert (
        upload.push(folder, concept_folder.concept_files(folder), "my-duck")
        == f"{server.url}/me/my-duck"
    )
    arrived = server.repositories["me/my-duck"]
    assert set(arrived) == OWN_FILES
    assert "the token went to the storage" not in server.requests
    for name, data in arrived.items():
        assert data == before[name]
        assert str(tmp_path).encode() not in data
    # Rows go to the storage of large files, the texts into the commit.
    assert set(server.large.values()) == {
        before["learned_embeds.bin"],
        before["learned_embeds.safetensors"],
    }
    assert content_of(folder) == before
    assert not server.private["me/my-duck"]


def test_a_second_upload_goes_to_the_same_repository(server, folder):
    upload.push(
        folder, concept_folder.concept_files(folder), "friends/duck", private=True
    )
    assert server.private["friends/duck"]
    (folder / "token_identifier.txt").write_text("<other>")
    upload.push(folder, concept_folder.concept_files(folder), "friends/duck")
    assert server.repositories["friends/duck"]["token_identifier.txt"] == b"<other>"
    assert list(server.repositories) == ["friends/duck"]


@pytest.mark.parametrize("answer", [429, 500, 503, "drop"])
@pytest.mark.parametrize(
    "place",
    [
        "/api/repos/create",
        "/api/validate-yaml",
        "/preupload/",
        "/info/lfs/",
        "/storage/",
        "/commit/",
    ],
)
def test_what_passes_is_tried_again(server, folder, waits, place, answer):
    server.faults.append(Fault(place, answer, times=2))
    upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert set(server.repositories["me/my-duck"]) == OWN_FILES
    assert len(waits) >= 2 and max(waits) <= 60


def test_waits_grow_and_the_hub_may_ask_for_longer_ones(server, folder, waits, caplog):
    caplog.set_level(logging.WARNING, "ti_flax")
    server.faults.append(Fault("/repos/create", 500, times=2))
    server.faults.append(Fault("/repos/create", 429, 1, {"Retry-After": "7"}))
    upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert waits == [1, 2, 7]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and all("trying again in" in line for line in said)


@pytest.mark.parametrize("answer", [429, 500, "drop"])
def test_an_upload_that_fails_leaves_all_and_says_how_to_push_later(
    server, folder, waits, answer
):
    before = content_of(folder)
    server.faults.append(Fault("/commit/", answer, times=100))
    with pytest.raises(UserError) as caught:
        upload.push(
            folder, concept_folder.concept_files(folder), "my-duck", private=True
        )
    line = str(caught.value)
    assert "\n" not in line and SECRET not in line
    command = f"python -m ti_flax.push {folder} --hub_model_id my-duck"
    assert line.endswith(f"{command} --hub_private_repo")
    assert len(waits) == 4 and waits == sorted(waits)
    assert content_of(folder) == before
    # And later it works.
    server.faults.clear()
    assert push.push_to_hub(folder=folder).endswith("/me/my-duck")
    assert set(server.repositories["me/my-duck"]) == OWN_FILES


@pytest.mark.parametrize("answer", [401, 403])
def test_a_refused_token_is_told_at_once(server, folder, waits, answer):
    server.faults.append(Fault(".", answer, times=100))
    with pytest.raises(UserError, match=rf"refused the token \({answer}\).*hf auth"):
        upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert not waits


def test_a_wrong_token_is_told_and_not_shown(server, folder, caplog, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"401") as caught:
        upload.push(
            folder, concept_folder.concept_files(folder), "my-duck", token="hf_wrong"
        )
    assert "hf_wrong" not in str(caught.value) + caplog.text


def test_a_card_that_the_hub_does_not_take_is_told(server, folder, waits):
    learned = Embedding(TOKEN, {"text_encoder": ROWS})
    model_card.write(folder, learned, "object", None, "my own licence")
    with pytest.raises(UserError, match='"license" must be one of') as caught:
        upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert "\n" not in str(caught.value) and not waits
    assert not server.repositories["me/my-duck"]


def test_the_token_comes_from_the_environment_or_the_login_or_is_missed(
    server, folder, monkeypatch, tmp_path
):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="run `hf auth login` or set HF_TOKEN"):
        upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert not server.requests
    (tmp_path / "login").write_text(SECRET)
    path = str(tmp_path / "login")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", path)
    upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    assert set(server.repositories["me/my-duck"]) == OWN_FILES


def test_a_folder_without_a_concept_is_refused(server, tmp_path):
    with pytest.raises(UserError, match=r"expected learned_embeds\.safetensors in it"):
        upload.push(tmp_path, concept_folder.concept_files(tmp_path), "my-duck")
    with pytest.raises(UserError, match="is no folder"):
        push.push_to_hub(folder=tmp_path / "none")
    assert not server.requests


# As a command, and in a run


def run_push(server, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    environment = {
        **kept,
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-m", "ti_flax.push", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_command_uploads_and_no_file_or_line_has_the_token(
    server, folder, tmp_path
):
    home = {"HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path), "HF_DEBUG": "1"}
    ran = run_push(server, str(folder), HF_TOKEN=SECRET, **home)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{server.url}/me/my-duck\n"
    assert "uploading 7 files, " in ran.stderr
    server.faults.append(Fault("/repos/create", 403, times=9))
    failed = run_push(server, str(folder), "--hub_token", SECRET, **home)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: the upload to my-duck")
    printed = ran.stdout + ran.stderr + failed.stdout + failed.stderr
    # HF_DEBUG prints each request as a curl command, in which the client hides it.
    assert SECRET not in printed and SECRET[3:] not in printed
    for name, data in content_of(tmp_path).items():
        assert SECRET.encode() not in data, name


@pytest.fixture
def run_config(folder, tmp_path):
    (tmp_path / "pictures").mkdir()
    return config_run_config.Config(
        pretrained_model_name_or_path="owner/base",
        train_data_dir=tmp_path / "pictures",
        placeholder_token=TOKEN,
        output_dir=folder,
        push_to_hub=True,
        hub_model_id="friends/duck",
        hub_token=SECRET,
        license="mit",
    )


@pytest.mark.parametrize("answer", [429, 503, "drop"])
@pytest.mark.parametrize("place", ["/repos/create", "/info/lfs/", "/storage/"])
def test_an_upload_that_is_repeated_says_so_in_our_own_lines(
    server, folder, tmp_path, place, answer
):
    """Inside huggingface_hub single requests are repeated, with a warning each."""
    server.faults.append(Fault(place, answer, times=1))
    ran = run_push(server, str(folder), HF_TOKEN=SECRET, HF_HOME=str(tmp_path / "home"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{server.url}/me/my-duck\n"
    first, *retries, last = ran.stderr.splitlines()
    assert "uploading 7 files, " in first and "uploaded to " in last
    assert len(retries) <= 1 and all("trying again in" in line for line in retries)


def test_a_run_checks_before_it_starts_and_uploads_when_it_ends(
    server, run_config, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    results.check(run_config)
    assert server.requests[-1] == "GET /api/whoami-v2"
    assert not server.repositories
    learned = Embedding(
        TOKEN, {"text_encoder": ROWS}, provenance={"base_model": "owner/base"}
    )
    results.write(run_config, learned, np.full((2, 16, 16, 3), 90, np.uint8))
    results.finish(run_config, base_model.open_model(str(MODEL)), None, learned)
    assert set(server.repositories["friends/duck"]) == OWN_FILES
    card = server.repositories["friends/duck"]["README.md"].decode()
    assert hub_server.check_card(card) == []


def test_a_run_that_could_not_upload_does_not_start(server, run_config, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for keys, words in [
        ({"hub_token": None}, "found none; run `hf auth login`"),
        ({"hub_token": SecretStr("hf_x")}, "refused the token"),
        ({"hub_model_id": "a/b/c"}, "hub_model_id: expected a repository"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            results.check(run_config.model_copy(update=keys))
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_that_is_away_at_the_start_is_only_a_warning(server, run_config, caplog):
    caplog.set_level(logging.WARNING, "ti_flax")
    server.faults.append(Fault("/api/whoami", 503, times=9))
    results.check(run_config)
    [record] = [r for r in caplog.records if r.name.startswith("ti_flax")]
    assert "cannot be reached now" in record.getMessage()


# The card


@pytest.mark.parametrize("base", [None, "owner/base"])
@pytest.mark.parametrize("license", [None, "mit"])
@pytest.mark.parametrize("word", [TOKEN, "a`b", "{}", "käse", "---"])
def test_the_card_is_valid(server, tmp_path, base, license, word):
    """By huggingface_hub's ModelCard, which asks the Hub's rules of the server."""
    from huggingface_hub import ModelCard

    learned = Embedding(
        word, {"text_encoder": ROWS}, provenance={"base_model": "b", "steps": "3"}
    )
    (tmp_path / "concept_images").mkdir()
    for number in (0, 2, 10):
        (tmp_path / "concept_images" / f"{number}.jpeg").touch()
    model_card.write(tmp_path, learned, "style", base, license)
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    assert "POST /api/validate-yaml" in server.requests
    assert hub_server.check_card(card.content) == []
    data = card.data.to_dict()
    assert data.get("license") == license and data.get("base_model") == base
    assert {"textual_inversion", "diffusers"} <= set(data["tags"])
    body = card.text
    assert body.index("/0.jpeg") < body.index("/2.jpeg") < body.index("/10.jpeg")
    assert "is a style that `b` learned" in body and "| steps | 3 |" in body


# Embeddings by their Hub id


def test_embeddings_are_read_by_their_hub_id(server, tmp_path):
    concept = Embedding("<cat-toy>", {"text_encoder": ROWS[:1]})
    concept_folder.export_concept(
        tmp_path / "c", concept, "object", np.zeros((1, 8, 8, 3), np.uint8)
    )
    files = content_of(tmp_path / "c")
    name = "sd-concepts-library/cat-toy"
    # As the library has it: the .bin alone; beside it what is not to be fetched.
    server.repositories[name] = {
        "learned_embeds.bin": files["learned_embeds.bin"],
        "unet/diffusion_pytorch_model.safetensors": b"large",
    }
    server.repositories["me/other"] = {"deep/x.pt": files["learned_embeds.bin"]}
    found = find.load_embedding(name)
    assert found.token == "<cat-toy>"
    np.testing.assert_array_equal(found.rows["text_encoder"], ROWS[:1])
    assert not any("unet" in request for request in server.requests)
    assert find.load_embedding("me/other/deep/x.pt").token == "<cat-toy>"
    # What has been fetched serves without the Hub; what has not is told in one line.
    server.stop()
    assert find.load_embedding(Path(name)).token == "<cat-toy>"
    with pytest.raises(UserError, match="cannot be fetched from the Hub") as caught:
        find.load_embedding("me/not-yet")
    assert "\n" not in str(caught.value)


def test_a_base_model_is_read_by_its_hub_id(server):
    server.repositories["owner/base"] = {
        **content_of(MODEL),
        "safety_checker/model.safetensors": b"large",
    }
    model = base_model.open_model("owner/base")
    assert set(content_of(model.source.path)) == set(content_of(MODEL))
    assert model.fingerprint() == base_model.open_model(str(MODEL)).fingerprint()


@pytest.mark.parametrize("width", [768, 32])
def test_vectors_start_from_an_embedding_with_a_hub_id(server, folder, width):
    """As trainer reads `initializer_embedding`, and generate `embedding`."""
    server.repositories["me/duck"] = content_of(folder)
    settings = config_run_config.Config(
        pretrained_model_name_or_path="x",
        train_data_dir="x",
        placeholder_token=TOKEN,
        initializer_embedding="me/duck",
    )
    widths = {"text_encoder": width}
    given = (settings.initializer_embedding, widths, "initializer_embedding")
    if width == 768:
        np.testing.assert_array_equal(
            find.load_for_model(*given).rows["text_encoder"], ROWS
        )
    else:
        with pytest.raises(UserError, match="initializer_embedding: me/duck has rows"):
            find.load_for_model(*given)


def test_a_connection_that_drops_is_told_in_one_line(server):
    server.faults.append(Fault(".", "drop", times=1000))
    with pytest.raises(UserError, match="cannot be fetched from the Hub") as caught:
        find.load_embedding("me/duck")
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_is_none_is_told_in_one_line(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"sd-concepts-library/gone is no local") as e:
        find.load_embedding("sd-concepts-library/gone")
    assert "\n" not in str(e.value)
    server.repositories["me/empty"] = {"README.md": b""}
    for name in ("me/empty", "me/empty/a.bin"):
        with pytest.raises(UserError, match=rf"{name} has no embedding: expected"):
            find.load_embedding(name)
    requests = len(server.requests)
    for name in ("/no/such/file.bin", "file.bin", "../up/file.bin"):
        with pytest.raises(UserError, match="does not exist"):
            find.load_embedding(name)
    assert len(server.requests) == requests


@pytest.mark.parametrize("before", range(270, 330, 6))
def test_no_part_of_the_token_is_quoted_where_a_long_answer_is_cut(before):
    reason = upload._reason(ValueError("x" * before + SECRET), SECRET)
    assert SECRET[:5] not in reason


def test_metadata_of_an_upload_hold_nothing_of_this_machine(server, folder, tmp_path):
    upload.push(folder, concept_folder.concept_files(folder), "my-duck")
    data = server.repositories["me/my-duck"]["learned_embeds.safetensors"]
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert metadata["ti_flax.base_model"] == "owner/base"
    for secret in (str(tmp_path), os.path.expanduser("~"), os.uname().nodename):
        assert secret not in json.dumps(metadata)
