"""CLIP's real tokenizer on disk, without a download.

The wheel of open_clip_torch carries the merges CLIP was trained with. Only that file
is read: importing the package would need PyTorch.
"""

import gzip
import importlib.metadata
import json
from pathlib import Path

import pytest

START, END = "<|startoftext|>", "<|endoftext|>"
NUM_MERGES = 48894


def write_clip_tokenizer(folder: Path, pad_token: str = END) -> Path:
    """Writes the files of a Stable Diffusion repository's tokenizer; returns `folder`.

    SD 1 pads with the end mark; `pad_token="!"` makes the tokenizer of SD 2, whose
    `special_tokens_map.json` contradicts its `tokenizer_config.json`, as here. Skips
    the test where open_clip_torch is not installed.
    """
    merges = _merges()
    symbols = list(byte_symbols().values())
    words = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *(merge.replace(" ", "") for merge in merges),
        START,
        END,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    _write_json(
        folder / "special_tokens_map.json",
        {
            "bos_token": _added_token(START),
            "eos_token": _added_token(END),
            "pad_token": pad_token,
            "unk_token": _added_token(END),
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **_added_token(START)},
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **_added_token(END)},
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": END,
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **_added_token(END)},
        },
    )
    return folder


def byte_symbols() -> dict[int, str]:
    """Returns a printable character for each byte, in the order of the vocabulary.

    Bytes that print as one character stand for themselves and come first, so "!" has
    id 0; the others borrow the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    borrowed = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | borrowed


def _merges() -> list[str]:
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch, which carries CLIP's vocabulary, is missing")
    (path,) = (file for file in files if file.name == "bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_binary()).decode().splitlines()
    return lines[1 : 1 + NUM_MERGES]  # the first line is a title; the rest is unused


def _added_token(content: str) -> dict[str, str | bool]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
