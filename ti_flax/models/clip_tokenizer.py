"""CLIP's tokenizer out of the package, for a model whose file has none.

All CLIP text encoders share one vocabulary (Radford et al. 2021); what differs is the
token that fills a prompt up.
"""

import atexit
import functools
import gzip
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ti_flax.runtime import atomic

VOCABULARY = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
# Of the file's lines, after its title, those that CLIP was trained with.
_NUM_MERGES = 48894
_LENGTH = 77


@functools.cache
def folder(pad: str) -> Path:
    """A tokenizer's folder, which lasts as long as this process; `pad` fills up.

    It has the files of a Stable Diffusion repository's.
    """
    made = Path(tempfile.mkdtemp(prefix="ti_flax-tokenizer-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    write(made, pad)
    return made


def write(folder: Path, pad: str, merges: Sequence[str] | None = None) -> None:
    """Writes vocab.json, merges.txt and what says which tokens are special.

    `merges` are CLIP's where none are given; with an empty list every letter is a
    token.
    """
    merges = _merges() if merges is None else merges
    symbols = byte_symbols()
    words = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *(merge.replace(" ", "") for merge in merges),
        START,
        END,
    ]
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": _LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    vocabulary = {word: i for i, word in enumerate(words)}
    atomic.write_json(folder / "vocab.json", vocabulary)
    with atomic.atomic_path(folder / "merges.txt") as path:
        path.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    atomic.write_json(folder / "special_tokens_map.json", special)
    atomic.write_json(folder / "tokenizer_config.json", settings)


def byte_symbols() -> list[str]:
    """One printable character for each byte, as GPT-2 and CLIP write them in files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbols[byte] for byte in [*printable, *others]]


def _merges() -> list[str]:
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")
    return lines[1 : 1 + _NUM_MERGES]
