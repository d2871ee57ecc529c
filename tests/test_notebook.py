"""launch/colab.ipynb runs from top to bottom with nothing but its form filled in."""

import ast
import configparser
import hashlib
import importlib.util
import re
import subprocess
import types
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from ti_flax.quickstart import settings

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parent.parent / "launch" / "colab.ipynb"
LONGEST = 28  # lines of a cell


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def codes(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def fill_in(notebook, **form):
    """Sets fields of the form, as Colab does when they are typed in."""
    (cell,) = (cell for cell in notebook.cells if "display-mode" in cell.source)
    for name, value in form.items():
        text, count = re.subn(
            rf"(?m)^{name} = .*?(  # @param)",
            lambda found, name=name, value=value: f"{name} = {value!r}{found[1]}",
            cell.source,
        )
        assert count == 1, name
        cell.source = text


def outputs(notebook, kind):
    """Values of one MIME type or stream that the cells show, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == kind:
                yield output.text
            elif kind in output.get("data", ()):
                yield output.data[kind]


def test_the_notebook_trains_shows_and_packs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # The tests' flags compile fast and compute slowly; this makes many pictures.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    fill_in(notebook, steps=4, word="<bee>")
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    (output,) = (path for path in (tmp_path / "output").iterdir() if path.is_dir())
    assert re.fullmatch("bee-[0-9a-f]{8}", output.name)
    assert (output / "learned_embeds.safetensors").exists()
    with zipfile.ZipFile(f"{output}.zip") as packed:
        assert f"{output.name}/learned_embeds.bin" in packed.namelist()
    assert "1 x cpu" in "".join(outputs(notebook, "stdout"))
    assert "4/4" in "".join(outputs(notebook, "stderr"))  # progress
    # The pictures, the previews, the curves and the pictures with the word.
    assert len(list(outputs(notebook, "image/png"))) == 4


def test_every_cell_is_short_and_only_the_form_is_for_filling_in(notebook):
    for source in codes(notebook):
        ast.parse(source)
        assert source.startswith("# @title")
        assert len(source.splitlines()) <= LONGEST
    assert sum("@param" in source for source in codes(notebook)) == 1


def test_the_notebook_is_stored_without_outputs(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


class Shell:
    """IPython's, as far as the notebook asks for it."""

    def set_custom_exc(self, kinds, handler):
        self.kinds = kinds


def cell(notebook, title):
    (found,) = (s for s in codes(notebook) if s.startswith(f"# @title {title}"))
    return found


def install(notebook, monkeypatch, tmp_path, returncode):
    """Runs the first cells where ti_flax is not installed; what was to be run."""
    ran = []

    class Ran:
        pass

    Ran.returncode = returncode
    monkeypatch.setattr(subprocess, "run", lambda words: ran.append(words) or Ran())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scope = {"source": "git+https://example.org/ti_flax", "get_ipython": Shell}
    exec(cell(notebook, "Where are we?"), scope)
    kept = str(tmp_path / "kept.txt")
    exec(cell(notebook, "Install").replace("/tmp/kept.txt", kept), scope)
    (words,) = ran
    return words


def test_the_runtimes_jax_and_libtpu_are_pinned_when_installing(
    notebook, tmp_path, monkeypatch
):
    words = install(notebook, monkeypatch, tmp_path, returncode=0)
    assert words[1:4] == ["-m", "pip", "install"]
    assert words[-1] == "git+https://example.org/ti_flax"
    constraints = (tmp_path / "kept.txt").read_text().splitlines()
    assert words[words.index("-c") + 1] == str(tmp_path / "kept.txt")
    kept = {d.name for d in metadata.distributions()} & {"jax", "jaxlib", "libtpu"}
    assert {"jax", "jaxlib"} <= kept
    for name in kept:
        assert f"{name}=={metadata.version(name)}" in constraints


def test_an_installation_that_fails_is_told_in_one_line(
    notebook, tmp_path, monkeypatch
):
    with pytest.raises(Exception, match=r"source: git\+https://example\.org") as raised:
        install(notebook, monkeypatch, tmp_path, returncode=1)
    assert type(raised.value).__name__ == "Mistake"


FORM = {
    "model": "quickstart",
    "word": "<bee>",
    "like": "heart",
    "kind": "object",
    "steps": 0,
    "folder": Path("pictures"),
}


def settings_of(notebook, devices=1, images=(b"one",), **form):
    """The configuration that the cells make of a form, on so many devices."""
    scope = {
        **FORM,
        **form,
        "settings": settings,
        "hashlib": hashlib,
        "Path": Path,
        "jax": types.SimpleNamespace(device_count=lambda: devices),
        "shown": types.SimpleNamespace(images=[np.frombuffer(i, "u1") for i in images]),
    }
    for title in ("Settings", "Where the result goes"):
        exec(cell(notebook, title), scope)
    return scope["config"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "me/model"},
        {"word": "<wasp>"},
        {"word": "(bee)"},  # the same letters
        {"like": "star"},
        {"kind": "style"},
        {"steps": 7},
        {"folder": Path("others")},
        {"images": (b"two",)},
    ],
)
def test_another_setting_is_another_folder_and_the_same_is_the_same(change, notebook):
    before = settings_of(notebook)
    assert settings_of(notebook).output_dir == before.output_dir
    assert settings_of(notebook, **change).output_dir != before.output_dir


def test_the_model_says_how_long_to_train(notebook):
    assert settings_of(notebook).max_train_steps == 600
    assert settings_of(notebook, model="me/model").max_train_steps == 3000
    assert settings_of(notebook, model="me/model", steps=9).max_train_steps == 9


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("model", ["quickstart", "me/model"])
def test_every_device_has_the_same_share_of_a_batch(devices, model, notebook):
    batch = settings_of(notebook, devices, model=model).train_batch_size
    assert batch % devices == 0
    least = 8 if model == "quickstart" else 4
    assert least <= batch < least + devices


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"pictures": "nowhere"}, "error: train_data_dir"),
        ({"pictures": "http://127.0.0.1:9/a.zip"}, "error: pictures: no zip file"),
        ({"steps": -1}, "error: max_train_steps"),
        ({"word": ""}, "error: placeholder_token"),
        ({"model": "./none"}, "error: pretrained_model_name_or_path"),
    ],
)
def test_a_mistake_is_one_line_in_a_cell(
    form, expected, notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    fill_in(notebook, **form)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    (failed,) = (
        cell
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "error:" in output.get("text", "")
    )
    assert not any(output.output_type == "error" for output in failed.outputs)
    said = [o.text for o in failed.outputs if "error:" in o.get("text", "")]
    (line,) = "".join(said).splitlines()
    assert line.startswith(expected)


def test_the_address_of_the_project_is_the_same_everywhere(notebook):
    root = NOTEBOOK.parent.parent
    about = configparser.ConfigParser()
    about.read(root / "setup.cfg")
    home = about["metadata"]["url"]
    (form,) = (source for source in codes(notebook) if "@param" in source)
    assert f'source = "git+{home}"' in form
    badge = f"{home.removeprefix('https://github.com/')}/blob/main/launch/colab.ipynb"
    assert f"https://colab.research.google.com/github/{badge}" in (
        (root / "README.md").read_text()
    )
