"""Trains CLIP's kind of byte-level BPE tokenizer on the world's captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's own pre-tokenization (openai/CLIP, simple_tokenizer.py).
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(
    captions: Iterable[str], folder: Path, merges: int, length: int
) -> CLIPTokenizer:
    """Writes `vocab.json`, `merges.txt` and the settings, and loads them again.

    The vocabulary keeps CLIP's order: 256 bytes, the same as ends of words, merges, the
    two special tokens. Every text has ids, whether or not its words were ever seen.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    pairs = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    symbols = [
        *alphabet,
        *(byte + _WORD_END for byte in alphabet),
        *dict.fromkeys("".join(pair) for pair in pairs),
        _START,
        _END,
    ]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    _write(folder, vocabulary, pairs, length)
    return CLIPTokenizer.from_pretrained(folder)


def _write(
    folder: Path, vocabulary: dict[str, int], pairs: list[tuple[str, ...]], length: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
    }
    settings = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
    }
    for name, content in {
        "vocab.json": vocabulary,
        "special_tokens_map.json": special,
        "tokenizer_config.json": settings,
    }.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
