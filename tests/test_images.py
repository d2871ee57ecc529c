"""The container images of launch/: what is pinned is what this package asks for."""

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
KINDS = ["tpu", "cuda"]
# Of the images: Debian 12 on x86-64.
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.12"}
IMAGE = PYTHON | {"sys_platform": "linux", "platform_machine": "x86_64"}


def pins(kind):
    """Name -> version, of the lock file."""
    text = (LAUNCH / f"requirements.{kind}.txt").read_text()
    found = re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.MULTILINE)
    assert len(found) > 50
    return dict(found)


def asked(kind):
    """What a pip install '.[kind]' asks for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"][kind].split()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in [*lines, *extra]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lock_has_all_that_the_package_asks_for(kind):
    locked = pins(kind)
    for requirement in asked(kind):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)
    accelerator = {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}[kind]
    assert accelerator in locked


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_locked_finds_all_it_asks_for(kind):
    """By the packages' own metadata, of those that are installed in that version."""
    locked = pins(kind)
    checked = 0
    for name, version in locked.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version != version:
            continue
        checked += 1
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker and not requirement.marker.evaluate(
                IMAGE | {"extra": ""}
            ):
                continue
            found = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(found), (name, requirement, found)
    assert checked


@pytest.mark.parametrize("kind", KINDS)
def test_every_pin_has_the_hashes_of_its_files(kind):
    text = (LAUNCH / f"requirements.{kind}.txt").read_text()
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(kind))
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", entry, re.MULTILINE), entry


def test_both_images_have_the_same_versions():
    tpu, cuda = map(pins, KINDS)
    assert {k: tpu[k] for k in tpu.keys() & cuda} == {
        k: cuda[k] for k in tpu.keys() & cuda
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_made_of_what_is_pinned(kind):
    lines = (LAUNCH / f"Dockerfile.{kind}").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    # The patch version and the system's: its tag is not moved to another.
    assert re.fullmatch(r"FROM python:3\.12\.\d+-slim-bookworm", base)
    assert base.split(":")[1].startswith(PYTHON["python_full_version"])
    installs = [line for line in lines if "pip install" in line]
    lock = f"--require-hashes --requirement /tmp/requirements.{kind}.txt"
    assert installs == [
        f"RUN pip install --no-cache-dir {lock}",
        "RUN pip install --no-cache-dir --no-deps .",
    ]
    assert f"COPY launch/requirements.{kind}.txt /tmp/" in lines
