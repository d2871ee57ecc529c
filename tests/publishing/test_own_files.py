"""What is uploaded of a folder that a stranger may have made."""

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_flax.publishing import concept_folder, model_card
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding

SECRET = b"root:x:0:0:root:/root:/bin/bash\n"


def jpeg(side: int = 16) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (200, 10, 10)).save(data, "JPEG")
    return data.getvalue()


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "concept"
    rows = np.random.default_rng(0).standard_normal((2, 768), np.float32)
    learned = Embedding("<duck>", {"text_encoder": rows})
    pictures = np.full((2, 16, 16, 3), 90, np.uint8)
    concept_folder.export_concept(folder, learned, "object", pictures)
    model_card.write(folder, learned, "object", None, None)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.jpeg").write_bytes(jpeg())
    return folder


NAMES = [
    "README.md",
    "concept_images/0.jpeg",
    "learned_embeds.bin",
    "learned_embeds.safetensors",
    "token_identifier.txt",
    "type_of_concept.txt",
]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        concept_folder.concept_files(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_runs_own_files_pass(folder):
    found = concept_folder.concept_files(folder)
    names = [str(path.relative_to(folder)) for path in found]
    assert sorted(names) == sorted([*NAMES, "concept_images/1.jpeg"])


def test_the_folder_itself_may_be_reached_by_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert len(concept_folder.concept_files(tmp_path / "link")) == 7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["secret", "itself", "/etc/passwd"])
def test_no_link_is_followed(folder, tmp_path, name, target):
    path = folder / name
    if target == "itself":
        # What it names would pass: a link is none of the folder's own files.
        (tmp_path / "moved").write_bytes(path.read_bytes())
        target = "moved"
    path.unlink()
    path.symlink_to(tmp_path / target)
    message = refusal(folder)
    assert message.startswith(f"{path} is a link or no file") and "remove" in message


def test_no_linked_folder_is_entered(folder, tmp_path):
    for path in (folder / "concept_images").iterdir():
        path.unlink()
    (folder / "concept_images").rmdir()
    (folder / "concept_images").symlink_to(tmp_path / "pictures")
    assert "concept_images/0.jpeg is a link or no file" in refusal(folder)


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_regular_files_is_opened(folder, name, kind, monkeypatch):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        # A socket's path is short.
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    assert "is a link or no file" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("concept_images/9.jpeg", SECRET, "no sound JPEG"),
        ("concept_images/9.jpeg", b"", "no sound JPEG"),
        ("concept_images/9.jpeg", png(), "no sound JPEG"),
        ("concept_images/9.jpeg", jpeg()[:200], "no sound JPEG"),
        ("concept_images/9.jpeg", b"\xff\xd8\xff" + SECRET, "no sound JPEG"),
        ("learned_embeds.safetensors", SECRET, "no embedding file"),
        ("learned_embeds.safetensors", b"", "no embedding file"),
        ("learned_embeds.bin", SECRET, "no embedding file"),
        ("learned_embeds.bin", b"PK\x03\x04" + SECRET, "damaged"),
        ("learned_embeds_2.bin", SECRET, "no embedding file"),
        ("README.md", b"\xff\xfe\x00", "no text"),
        ("README.md", b"a\0b", "no text"),
        ("README.md", b"a" * (2**20 + 1), "longer than"),
        ("token_identifier.txt", b"\x80", "no text"),
        ("token_identifier.txt", SECRET, "expected a word"),
        ("token_identifier.txt", b"a" * 300, "expected a word"),
        ("type_of_concept.txt", SECRET, "expected a word"),
        ("type_of_concept.txt", b"\x1b[2J", "expected a word"),
    ],
)
def test_a_file_is_what_its_name_says(folder, name, data, words):
    (folder / name).write_bytes(data)
    message = refusal(folder)
    assert str(folder) in message and words in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("learned_embeds.safetensors", "learned_embeds.bin"),
        ("learned_embeds.bin", "learned_embeds.safetensors"),
    ],
)
def test_a_pickle_does_not_go_as_safetensors(folder, name, source):
    (folder / name).write_bytes((folder / source).read_bytes())
    assert "file of another name" in refusal(folder)


def test_a_picture_that_is_huge_in_memory_is_not_decoded(folder):
    data = bytearray(jpeg())
    start = data.index(b"\xff\xc0") + 5  # height and width in the frame's header
    data[start : start + 4] = b"\xff\xff\xff\xff"
    (folder / "concept_images" / "9.jpeg").write_bytes(data)
    assert "no sound JPEG" in refusal(folder)
