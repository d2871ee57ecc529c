"""docs/personas.md and docs/gallery.md: each command is read, each test is there."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ti_flax import __main__ as front
from ti_flax.config import concepts
from ti_flax.data import command as data_command
from ti_flax.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("personas", "gallery")
}
# What the commands want to be there.
FILES = {
    "list.yaml": "cat: {train_data_dir: cat, placeholder_token: <cat>}\n",
    "dataset.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "my_pictures"\n',
    "output/gallery/config.yaml": "pretrained_model_name_or_path: model\n",
}


def commands(page: str) -> list[list[str]]:
    """The words of each command, without those that a shell reads itself."""
    code = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    code = re.sub(r"<<'EOF'\n.*?\nEOF\n", "\n", code, flags=re.DOTALL)
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


ALL = [words for page in PAGES.values() for words in commands(page)]
OURS = [words[1:] for words in ALL if words[0] == "ti-flax"]
SCRIPTS = [words for words in ALL if words[0].startswith("launch/")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def read(command: str, arguments: list[str]) -> object:
    """What a command makes of its arguments before it does anything."""
    name = front.module_of(command)
    if command == "quickstart":
        name += ".__main__"
    return importlib.import_module(name).command._read(arguments)


@pytest.mark.parametrize("words", OURS, ids=lambda words: " ".join(words)[:60])
def test_a_command_is_known_and_so_are_its_keys(words, folder, monkeypatch):
    command, *arguments = words
    assert command in front.COMMANDS
    if command == "data":  # which looks into the folder as it reads
        monkeypatch.setattr(data_command.doctor, "examine", lambda *_, **__: 1 / 0)
        monkeypatch.setattr("sys.argv", ["data", *arguments])
        with pytest.raises(ZeroDivisionError):
            data_command.main()
    else:
        read(command, arguments)


def test_a_mistake_in_the_page_would_be_seen(folder):
    """Otherwise the test above would prove nothing."""
    for words in (["convert", "a.pt", "--too=kohya"], ["train", "--sead=1"]):
        with pytest.raises(UserError, match="did you mean"):
            read(words[0], words[1:])


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: words[0])
def test_a_script_has_the_options_that_it_is_given(words, folder):
    own, keys = words[1:], []
    if "--" in own:
        own, keys = own[: own.index("--")], own[own.index("--") + 1 :]
    told = subprocess.run(
        ["bash", ROOT / words[0], "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert own[0] in told
    for option in own:
        assert not option.startswith("--") or option in told, option
    concepts.load(keys)


def test_no_command_is_of_another_kind():
    """So that each one above is looked at."""
    others = {" ".join(words[:2]) for words in ALL} - {
        " ".join(words[:2]) for words in ALL if words[1:] in OURS or words in SCRIPTS
    }
    assert others == {
        "bash launch/local.sh",
        "cat >",
        "python -",
        "python examples/learn_a_word.py",
        "python examples/compare_rates.py",
    }
    for words in others:
        last = words.split()[-1]
        assert not last.endswith((".sh", ".py")) or (ROOT / last).exists()


@pytest.mark.parametrize(
    "named", sorted({*re.findall(r"`(tests/\S+?)`", PAGES["personas"])})
)
def test_what_shows_a_path_is_there(named):
    file, _, name = named.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not name or f"def {name}(" in text


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_pages_are_there_and_small(page):
    for link in re.findall(r"\]\(([^)#:]+)", PAGES[page]):
        path = ROOT / "docs" / link
        assert path.exists(), link
        assert path.suffix not in (".jpg", ".png") or path.stat().st_size < 150_000
