"""The tokenizer out of the package is CLIP's, whoever reads it."""

import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path

import pytest
from clip_vocabulary import END, START, write_clip_tokenizer

from ti_flax.models import clip_tokenizer
from ti_flax.text.tokenizer import load_tokenizer

PADS = (END, "!")
TEXTS = (
    "a photo of a <cat-toy>",
    "The QUICK brown fox's 42 jumps!",
    "naïve café, 日本語 and 🙂 emoji",
    "under_score  many   spaces\tand\nlines",
    "don't you'll we've 3.14159 $5,000 #hash @name",
    "ﬁne ① Å ß İstanbul",
    "",
    "!!! ??? ... --- <|endoftext|> <|startoftext|>",
    "antidisestablishmentarianism supercalifragilistic" * 5,
)


@pytest.mark.parametrize("pad", PADS)
def test_the_files_are_those_of_open_clips_vocabulary(pad: str, tmp_path: Path) -> None:
    """Written again from the vocabulary that another package carries."""
    theirs = write_clip_tokenizer(tmp_path / "theirs", pad)
    ours = clip_tokenizer.folder(pad)
    vocabularies = [
        json.loads((folder / "vocab.json").read_text()) for folder in (ours, theirs)
    ]
    assert [*vocabularies[0].items()] == [*vocabularies[1].items()]
    assert len(vocabularies[0]) == 49408
    assert (vocabularies[0][START], vocabularies[0][END]) == (49406, 49407)
    assert vocabularies[0]["!"] == 0
    merges = [(folder / "merges.txt").read_text() for folder in (ours, theirs)]
    assert merges[0] == merges[1]


@pytest.mark.parametrize("pad", PADS)
def test_texts_have_the_ids_of_the_published_tokenizer(
    pad: str, tmp_path: Path
) -> None:
    ours = load_tokenizer(clip_tokenizer.folder(pad))
    theirs = load_tokenizer(write_clip_tokenizer(tmp_path / "theirs", pad))
    assert ours.pad_token_id == theirs.pad_token_id == {"!": 0, END: 49407}[pad]
    assert ours.model_max_length == theirs.model_max_length == 77
    for text in TEXTS:
        padded = [
            tokenizer(text, padding="max_length", truncation=True)["input_ids"]
            for tokenizer in (ours, theirs)
        ]
        assert padded[0] == padded[1] and len(padded[0]) == 77


def test_texts_have_the_ids_of_open_clips_own_tokenizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its code is OpenAI's, alone: the package wants torchvision, the code ftfy."""
    pytest.importorskip("torch")
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip_torch is not installed")
    path = Path(package.origin).parent / "tokenizer.py"
    # It mends texts in wrong encodings, of which there are none here.
    mend = types.SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setitem(sys.modules, "ftfy", mend)
    theirs = runpy.run_path(path)["SimpleTokenizer"]()
    # With "!" as padding, transformers finds it in texts, too.
    ours = load_tokenizer(clip_tokenizer.folder(END))
    for text in TEXTS:
        if "<|" not in text:
            ids = ours(text, truncation=True)["input_ids"]
            padded = theirs(text)[0].tolist()
            assert padded == ids + [0] * (77 - len(ids)), text


def test_a_folder_is_written_once_and_goes_with_the_process() -> None:
    assert clip_tokenizer.folder("!") == clip_tokenizer.folder("!")
    assert clip_tokenizer.folder("!") != clip_tokenizer.folder(END)


def test_the_vocabulary_has_its_licence_beside_it() -> None:
    text = (clip_tokenizer.VOCABULARY.parent / "LICENSE").read_text()
    assert "Copyright (c) 2021 OpenAI" in text and "MIT License" in text
