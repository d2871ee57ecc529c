"""What the wheel holds: the package as it is, without what made the embedded model."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ti_flax.config import yaml_file

ROOT = Path(__file__).parent.parent
FILES = ("LICENSE", "README.md", "pyproject.toml", "requirements.txt", "setup.cfg")
PACKAGED = "ti_flax/config/recipes"
LEFT_OUT = "ti_flax/quickstart/base_model/"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy: a build leaves files behind, which the next build would take up."""
    folder = tmp_path_factory.mktemp("wheel") / "sources"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ti_flax", folder / "ti_flax", ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    # Without isolation, so that nothing is fetched.
    subprocess.run(
        [*command, "--no-build-isolation", "-w", str(sources.parent), str(sources)],
        check=True,
    )
    (wheel,) = sources.parent.glob("*.whl")
    return wheel


def test_the_wheel_has_every_file_of_the_package_to_the_byte(wheel):
    with zipfile.ZipFile(wheel) as content:
        held = {name: content.read(name) for name in content.namelist()}
    held = {name: text for name, text in held.items() if name.startswith("ti_flax/")}
    wanted = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "ti_flax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    left_out = {name for name in wanted if name.startswith(LEFT_OUT)}
    assert left_out and held == {n: wanted[n] for n in wanted.keys() - left_out}
    assert wheel.stat().st_size < 14 * 2**20


def test_the_wheel_says_where_it_runs_and_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = (n for n in content.namelist() if n.endswith("/METADATA"))
        metadata = content.read(name).decode()
    for line in (ROOT / "requirements.txt").read_text().split():
        assert f"Requires-Dist: {line.split('>')[0]}" in metadata
    for system in ("MacOS", "POSIX :: Linux"):
        assert f"Classifier: Operating System :: {system}" in metadata


def test_the_configurations_of_the_repository_are_the_packages_own():
    """So that a wheel has them."""
    links = {path.name: path for path in (ROOT / "configs").iterdir()}
    assert all(path.is_symlink() for path in links.values())
    quickstart = links.pop("quickstart.yaml")
    assert quickstart.resolve().parent == ROOT / "ti_flax" / "quickstart"
    recipes = {path.name: path for path in (ROOT / PACKAGED).glob("*.yaml")}
    assert {name: path.resolve() for name, path in links.items()} == recipes
    assert sorted(recipes) == [f"{name}.yaml" for name in yaml_file.recipes()]
