"""launch/colab.ipynb runs from top to bottom with nothing but its form filled in."""

import ast
import re
import zipfile
from pathlib import Path

import pytest

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
    output = tmp_path / "output" / "bee"
    assert (output / "learned_embeds.safetensors").exists()
    with zipfile.ZipFile(tmp_path / "output" / "bee.zip") as packed:
        assert "bee/learned_embeds.bin" in packed.namelist()
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


def test_the_runtimes_jax_and_libtpu_are_pinned_when_installing(
    notebook, tmp_path, monkeypatch
):
    (where, install) = (
        next(s for s in codes(notebook) if f"# @title {title}" in s)
        for title in ("Where are we?", "Install")
    )
    ran = []

    class Ran:
        returncode = 0

    import importlib.util
    import subprocess
    from importlib import metadata

    import jax

    monkeypatch.setattr(subprocess, "run", lambda words: ran.append(words) or Ran())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scope = {"source": "git+https://example.org/ti_flax"}
    exec(where, scope)
    exec(install.replace("/tmp/kept.txt", str(tmp_path / "kept.txt")), scope)
    (words,) = ran
    assert words[1:4] == ["-m", "pip", "install"] and words[-1] == scope["source"]
    constraints = (tmp_path / "kept.txt").read_text().splitlines()
    assert words[words.index("-c") + 1] == str(tmp_path / "kept.txt")
    assert f"jax=={jax.__version__}" in constraints
    assert f"jaxlib=={metadata.version('jaxlib')}" in constraints
    assert f"libtpu=={metadata.version('libtpu')}" in constraints
