"""Captions as other trainers leave them beside pictures, read by their rules."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ti_flax.data.buckets import Cropping
from ti_flax.data.captions import found_kinds, from_file_name, read_captions
from ti_flax.data.folder import read_pictures
from ti_flax.runtime.errors import UserError

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def picture(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(name.encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def write(folder: Path, files: dict[str, bytes | str | None]) -> list[str]:
    """Writes files, pictures where None; the pictures as they are read."""
    for name, content in files.items():
        if content is None:
            picture(folder, name)
        else:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode()
            path.write_bytes(data)
    return list(read_pictures(folder, Cropping(8)).names)


def lines(*entries: dict) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


# Name -> files (None: a picture), the kind found, text of each picture.
FOLDERS = {
    # OneTrainer and A1111: NAME.txt; a line each is another caption of OneTrainer's.
    "txt": (
        {"a.png": None, "b.jpg": None, "a.txt": "a red cat\n", "b.txt": "1\n\n 2 \n"},
        "txt",
        {"a.png": "a red cat", "b.jpg": "1\n2"},
    ),
    # kohya: NAME.caption, a line of tags.
    "caption": (
        {"a.png": None, "a.caption": "1girl, red hair, {a|b}"},
        "caption",
        {"a.png": "1girl, red hair, {a|b}"},
    ),
    # The datasets library, whose folders invoke-training reads.
    "jsonl": (
        {
            "a.png": None,
            "b.png": None,
            "metadata.jsonl": lines(
                {"file_name": "a.png", "text": "a cat"},
                {"file_name": "./b.png", "text": "two\ncats", "label": 3},
            ),
        },
        "jsonl",
        {"a.png": "a cat", "b.png": "two\ncats"},
    ),
    # invoke-training's own names of the columns.
    "jsonl of invoke": (
        {
            "a.png": None,
            "metadata.jsonl": lines({"image": "a.png", "caption": "a cat"}),
        },
        "jsonl",
        {"a.png": "a cat"},
    ),
    "jsonl in a sub-folder": (
        {
            "3_b/a.png": None,
            "a.png": None,
            "metadata.jsonl": lines(
                {"file_name": "a.png", "text": "above"},
            ),
            "3_b/metadata.jsonl": lines({"file_name": "a.png", "text": "below"}),
        },
        "jsonl",
        {"3_b/a.png": "below", "a.png": "above"},
    ),
    # kohya's merge scripts: absolute paths, with and without an ending; tags follow
    # each line of a caption, after caption_separator.
    "json": (
        {
            "a.png": None,
            "b.png": None,
            "c.png": None,
            "d.png": None,
            "meta_cap.json": json.dumps(
                {
                    "/home/me/train/a.png": {"caption": "a cat"},
                    "C:\\train\\b": {"caption": "x\ny", "tags": "red,\nbig"},
                    "c": {"tags": "1girl, red hair", "train_resolution": [512, 512]},
                    "d.png": {"caption": None, "tags": "only"},
                }
            ),
        },
        "json",
        {
            "a.png": "a cat",
            "b.png": "x,red,,big\ny,red,,big",
            "c.png": "1girl, red hair",
            "d.png": "only",
        },
    ),
    "json of folders": (
        {
            "1_a/x.png": None,
            "2_b/x.png": None,
            "meta.json": json.dumps(
                {"/t/1_a/x.png": {"caption": "A"}, "2_b/x": {"caption": "B"}}
            ),
        },
        "json",
        {"1_a/x.png": "A", "2_b/x.png": "B"},
    ),
    "kohya's folders": (
        {
            "10_toy/a.png": None,
            "10_toy/a.caption": "one",
            "2_toy/b.png": None,
            "2_toy/b.caption": "two",
        },
        "caption",
        {"10_toy/a.png": "one", "2_toy/b.png": "two"},
    ),
    "byte order mark and CRLF": (
        {"a.png": None, "a.txt": b"\xef\xbb\xbfa cat\r\n\r\na dog\r\n"},
        "txt",
        {"a.png": "a cat\na dog"},
    ),
    "UTF-16 of a Windows editor": (
        {
            "a.png": None,
            "b.png": None,
            "a.txt": b"\xff\xfe" + "a caf\u00e9\r\n".encode("utf-16-le"),
            "b.txt": b"\xfe\xff" + "\u732b".encode("utf-16-be"),
        },
        "txt",
        {"a.png": "a caf\u00e9", "b.png": "\u732b"},
    ),
    "endings in capitals": (
        {"A.PNG": None, "A.TXT": "a cat"},
        "txt",
        {"A.PNG": "a cat"},
    ),
    "decomposed names and letters (macOS)": (
        {f"{DECOMPOSED}.png": None, f"{COMPOSED}.txt": f"a {DECOMPOSED}"},
        "txt",
        {f"{DECOMPOSED}.png": f"a {COMPOSED}"},
    ),
    "decomposed names in metadata": (
        {
            f"{COMPOSED}.png": None,
            "metadata.jsonl": lines({"file_name": f"{DECOMPOSED}.png", "text": "x"}),
        },
        "jsonl",
        {f"{COMPOSED}.png": "x"},
    ),
    "files of other programs": (
        {
            "a.png": None,
            "README.txt": "my pictures",
            "._a.txt": b"\0\5\x16\7",
            "a.png.json": '{"title": "a.png", "photoTakenTime": {"timestamp": "1"}}',
            "broken.json": "{",
        },
        "none",
        {"a.png": ""},
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_captions_are_those_of_the_program_that_wrote_them(name, tmp_path):
    files, kind, texts = FOLDERS[name]
    pictures = write(tmp_path, files)
    read = read_captions(tmp_path, pictures, "auto")
    assert read.source == kind
    assert dict(zip(pictures, read.texts, strict=True)) == texts
    assert read.notes == ()
    if kind != "none":
        assert read_captions(tmp_path, pictures, kind) == read
    off = read_captions(tmp_path, pictures, "none")
    assert off.source == "none" and not any(off.texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a red cat.png", "a red cat"),
        ("00001-0-a red cat.png", "a red cat"),
        ("10_toy/12 toy.v2.jpg", "toy.v2"),
        ("0.png", ""),
        (f"{DECOMPOSED}.png", COMPOSED),
    ],
)
def test_file_names_are_read_as_automatic1111_reads_them(name, text):
    assert from_file_name(name) == text
    assert read_captions(Path("none"), [name], "filename").texts == (text,)


# What is wrong -> files beside a.png, the source, what is told.
MISTAKES = {
    "two kinds": ({"a.txt": "x", "a.caption": "x"}, "auto", "found txt and caption"),
    "three kinds": (
        {"a.txt": "x", "metadata.jsonl": "{}", "meta.json": '{"a": {"tags": "x"}}'},
        "auto",
        "found txt and jsonl and json",
    ),
    "no txt": ({}, "txt", "NAME.txt beside pictures"),
    "no caption": ({"a.txt": "x"}, "caption", "NAME.caption beside pictures"),
    "no jsonl": ({}, "jsonl", "expected metadata.jsonl"),
    "no json": ({}, "json", "expected one .json file"),
    "two files": ({"a.txt": "x", "a.TXT": "x"}, "auto", "expected one file, found"),
    "latin-1": ({"a.txt": "caf\u00e9".encode("latin-1")}, "auto", "in UTF-8"),
    "binary": ({"a.txt": b"\x89PNG\r\n\x1a\n\0\0"}, "auto", "UTF-8"),
    "zeros": ({"a.txt": b"a\0b"}, "auto", "control characters"),
    "UTF-16 without a mark": (
        {"a.txt": "a cat".encode("utf-16-le")},
        "auto",
        "control characters",
    ),
    "half of UTF-16": ({"a.txt": b"\xff\xfea"}, "auto", "in UTF-8"),
    "a book": ({"a.txt": b"word " * 20000}, "auto", "expected at most 65536"),
    "a folder": ({"a.txt/b": "x"}, "txt", "found a folder"),
    "a broken line": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n\n{"file_name'},
        "auto",
        "metadata.jsonl, line 3: not readable JSON",
    ),
    "a line without text": (
        {"metadata.jsonl": lines({"file_name": "a.png"})},
        "auto",
        "line 1: expected",
    ),
    "a list in a line": ({"metadata.jsonl": "[1]"}, "auto", "line 1: expected"),
    "deep": ({"metadata.jsonl": "[" * 100000}, "auto", "not readable JSON"),
    "a number": (
        {"metadata.jsonl": lines({"file_name": "a.png", "text": 3})},
        "auto",
        "line 1: expected",
    ),
    "outside": (
        {"metadata.jsonl": lines({"file_name": "../a.png", "text": "x"})},
        "auto",
        "expected a picture in this folder, found '../a.png'",
    ),
    "outside, Windows": (
        {"metadata.jsonl": lines({"file_name": "C:\\a.png", "text": "x"})},
        "auto",
        "expected a picture in this folder",
    ),
    "absolute": (
        {"metadata.jsonl": lines({"file_name": "/t/a.png", "text": "x"})},
        "auto",
        "expected a picture in this folder",
    ),
    "twice": (
        {"metadata.jsonl": lines(*[{"file_name": "a.png", "text": "x"}] * 2)},
        "auto",
        "line 2: 'a.png' has a caption already in line 1",
    ),
    "a control character": (
        {"metadata.jsonl": lines({"file_name": "a.png", "text": "a\0"})},
        "auto",
        "control characters",
    ),
    "json that is no object": ({"meta.json": "[]"}, "json", "expected {"),
    "json of numbers": (
        {"meta.json": '{"a": {"caption": 3}}'},
        "json",
        "expected {",
    ),
    "json twice": (
        {"meta.json": '{"a": {"caption": "x"}, "a.png": {"caption": "y"}}'},
        "json",
        "and another path mean a.png",
    ),
    "several json": (
        {"m1.json": '{"a": {"caption": "x"}}', "m2.json": '{"a": {"tags": "x"}}'},
        "json",
        "found m1.json, m2.json",
    ),
    "broken json": ({"meta.json": "{"}, "json", "not readable JSON"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, tmp_path):
    files, source, told = MISTAKES[name]
    pictures = write(tmp_path, {"a.png": None, **files})
    with pytest.raises(UserError) as raised:
        read_captions(tmp_path, pictures, source)
    line = str(raised.value)
    assert told in line
    assert line.isprintable() and len(line) < 600


def test_a_pipe_is_not_waited_for(tmp_path):
    pictures = write(tmp_path, {"a.png": None})
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="found a pipe"):
        read_captions(tmp_path, pictures, "auto")


def test_what_is_odd_is_noted(tmp_path):
    pictures = write(
        tmp_path,
        {
            "a.png": None,
            "b.png": None,
            "c.png": b"broken",
            "a.txt": " \n",
            "b.txt": "x",
        },
    )
    assert pictures == ["a.png", "b.png"]
    read = read_captions(tmp_path, pictures, "auto")
    assert read.texts == ("", "x")
    assert read.notes == ("the caption of a.png is empty",)
    (tmp_path / "metadata.jsonl").write_text(
        lines(
            {"file_name": "a.png", "text": "x"},
            {"file_name": "c.png", "text": "it is there, though broken"},
            {"file_name": "d.png", "text": "x"},
        )
    )
    (note,) = read_captions(tmp_path, pictures, "jsonl").notes
    assert note.endswith("metadata.jsonl, line 3: there is no picture 'd.png'")
    (tmp_path / "meta.json").write_text('{"b": {"tags": "x"}, "z": {"tags": "x"}}')
    (note,) = read_captions(tmp_path, pictures, "json").notes
    assert note.endswith("meta.json: there is no picture 'z'")
    assert found_kinds(tmp_path, pictures) == ["txt", "jsonl", "json"]


def test_captions_are_not_listed_among_the_skipped_files(tmp_path):
    write(
        tmp_path,
        {
            "a.png": None,
            "a.txt": "x",
            "a.caption": "x",
            "metadata.jsonl": "",
            "meta_cap.json": "",
            "b.txt": "of no picture",
        },
    )
    (note,) = read_pictures(tmp_path, Cropping(8)).notes
    assert note.startswith("skipped b.txt: ")


# Files -> (name, how often it counts) of each picture.
REPEATED = {
    "kohya's folders": (
        ["10_sks toy/a.png", "2_b/b.png", "2_b/c.png"],
        [("10_sks toy/a.png", 10), ("2_b/b.png", 2), ("2_b/c.png", 2)],
    ),
    "beside loose pictures": (
        ["3_a/a.png", "b.png"],
        [("3_a/a.png", 3), ("b.png", 1)],
    ),
    "one folder": (
        ["10_a/a.png", "10_a/b.png"],
        [("10_a/a.png", 10), ("10_a/b.png", 10)],
    ),
    "zero times": (["0_a/a.png", "b.png"], [("b.png", 1)]),
    "no number": (["x_a/a.png", "a/c.png", "10/d.png", "b.png"], [("b.png", 1)]),
}


@pytest.mark.parametrize("name", REPEATED)
def test_pictures_count_as_often_as_their_folder_says(name, tmp_path):
    files, expected = REPEATED[name]
    write(tmp_path, dict.fromkeys(files))
    read = read_pictures(tmp_path, Cropping(8))
    assert [*zip(read.names, read.repeats, strict=True)] == expected
    order = read.order()
    shares = np.bincount(order) / len(order)
    counts = np.array([count for _, count in expected])
    np.testing.assert_allclose(shares, counts / counts.sum())
    # In lowest terms: a folder whose pictures count alike is as one without.
    assert len(order) == counts.sum() / np.gcd.reduce(counts)


def test_the_same_picture_in_two_folders_is_told(tmp_path):
    write(tmp_path, {"1_a/x.png": None})
    (tmp_path / "2_b").mkdir()
    (tmp_path / "2_b" / "x.png").write_bytes((tmp_path / "1_a/x.png").read_bytes())
    read = read_pictures(tmp_path, Cropping(8))
    assert read.notes == ("skipped 2_b/x.png: the same picture as 1_a/x.png",)


def test_a_slip_of_a_folders_number_is_told(tmp_path):
    write(tmp_path, {"99999999_a/x.png": None, "1_b/b.png": None})
    with pytest.raises(UserError, match="count 100000000 times together"):
        read_pictures(tmp_path, Cropping(8)).order()
