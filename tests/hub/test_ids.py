"""One rule for what names a repository of the Hub, beside huggingface_hub's own."""

import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub import utils
from hypothesis import example, given
from hypothesis import strategies as st

from ti_flax.config import run_config
from ti_flax.formats import find
from ti_flax.hub.ids import hub_id, is_repository, model_name, parse
from ti_flax.models import base_model
from ti_flax.runtime.errors import UserError

REPOSITORIES = [
    "a/b",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1.4",
    "sd-concepts-library/cat_toy",
    "_/1",
    "o" * 96 + "/" + "n" * 96,
    # A file may have this name too; who has one looks for it first.
    "folder/model.safetensors",
]
FILES = {
    "a/b/c": ("a/b", "c"),
    "a/b/learned_embeds.bin": ("a/b", "learned_embeds.bin"),
    "a/b/sub-folder/v1.0/x_1.pt": ("a/b", "sub-folder/v1.0/x_1.pt"),
}
NEITHER = [
    "",
    "a",
    "/",
    "a/",
    "/b",
    "a//b",
    "a/b/",
    "a/b//c",
    "a--b/c",
    "a/b--c",
    "a..b/c",
    "a/b..c",
    "../b",
    "./model.safetensors",
    "a/..",
    "a/b/..",
    "a/b/../../c",
    "a/b/.hidden",
    "a/b.git",
    "a/b.git/c",
    "-a/b",
    "a-/b",
    ".a/b",
    "a/b.",
    "ä/b",
    "a/ünet",
    "a/b/ü",
    "a/日本",
    "o" * 97 + "/n",
    "o/" + "n" * 97,
    "a b/c",
    "a/b\n",
    "a/b\x1b[31m",
    "~/b",
    "/abs/olute",
    r"C:\x",
    r"C:\x/y",
    "C:/x",
    "hf://a/b",
    "https://huggingface.co/a/b",
    "a/b@main",
]


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_owner_and_name(name):
    assert parse(name) == (name, "")
    assert is_repository(name)
    utils.validate_repo_id(name)


@pytest.mark.parametrize("name", FILES)
def test_what_follows_them_is_a_file_in_it(name):
    assert parse(name) == FILES[name]
    assert not is_repository(name)


@pytest.mark.parametrize("name", NEITHER)
def test_everything_else_is_neither(name):
    assert parse(name) is None
    assert not is_repository(name)


@given(
    st.text("aZ09_.-/", max_size=12)
    | st.builds("{}/{}".format, st.text("aZ_.-é", max_size=6), st.text("b.git-"))
)
@example("a/b.git")
@example("a-/b")
def test_a_repository_is_what_huggingface_hub_takes_for_one(name):
    try:
        utils.validate_repo_id(name)
        valid = True
    except hub_errors.HFValidationError:
        valid = False
    # It also takes a name without its owner: the Hub then puts in the account.
    assert is_repository(name) == (valid and "/" in name)


@pytest.mark.parametrize("name", ["a/b", "a/b/c", "./model.safetensors", "a--b/c"])
def test_all_who_ask_get_the_same_answer(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **kind: asked.append(name) or str(tmp_path),
    )
    found = parse(name)
    assert hub_id(name) == (name if is_repository(name) else None)
    with pytest.raises(UserError):  # the folder is empty
        find.load_embedding(name)
    with pytest.raises(UserError):
        base_model.open_model(name)
    known = [found.repository] if found else []
    assert asked == known + (known if is_repository(name) else [])


@pytest.mark.parametrize("name", ["./model.safetensors", "folder/model.safetensors"])
def test_a_file_as_a_base_model_is_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"all of a model")
    settings = run_config.Config(
        pretrained_model_name_or_path=name,
        train_data_dir="pictures",
        placeholder_token="<toy>",
    )
    with pytest.raises(UserError) as caught:
        base_model.open_model(settings.pretrained_model_name_or_path)
    told = f"{name.removeprefix('./')}: expected a safetensors file, found one that"
    assert str(caught.value).startswith(told)
    assert hub_id(name) is None


@pytest.mark.parametrize(
    ("name", "told", "repository"),
    [
        ("folder", "folder", None),
        ("./folder/.", "folder", None),
        ("folder/m.safetensors", "m.safetensors", None),
        ("a/b", "a/b", "a/b"),
        ("a/b/m.safetensors", "a/b/m.safetensors", "a/b"),
        ("a/b/c/m.ckpt", "a/b/c/m.ckpt", "a/b"),
        ("a/b/c.txt", "a/b/c.txt", None),
        ("nowhere", "nowhere", None),
    ],
)
def test_a_base_model_is_told_without_its_path(
    name, told, repository, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "m.safetensors").write_bytes(b"")
    assert model_name(name) == told
    assert hub_id(name) == repository
    absolute = tmp_path / "folder" / "m.safetensors"
    assert model_name(str(absolute)) == "m.safetensors"
