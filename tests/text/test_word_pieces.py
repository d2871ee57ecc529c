"""BERT's tokenizer behind the same prompts: word-pieces, placeholders, 77 tokens."""

import json
import unicodedata

import numpy as np
import pytest
from clip_vocabulary import write_clip_tokenizer

from ti_flax.models import bert_tokenizer
from ti_flax.runtime.errors import UserError
from ti_flax.text import known_words
from ti_flax.text.initial_rows import initializer_ids, warn_of_unused_pieces
from ti_flax.text.nearest_words import nearest_words
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer

V = 400
PAD, UNK, CLS, SEP = range(4)
WORDS = ["a", "photo", "of", "cat", "colli", "##e", "##ing", "paint", "toys", "toy"]
PROMPTS = [
    "a photo of a cat",
    "",
    "A PHOTO of, a Cat!!",
    "painting collies; don't <stop> #now (really?)",
    "  spaced\t out\n words ",
    "ein Mädchen mit Grüßen aus Köln",
    "une ÉCOLE d'été, cafe\u0301",
    "猫の写真 и кошка",
    "antidisestablishmentarianism 12345",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The layout of repositories, and as transformers saves it again."""
    root = tmp_path_factory.mktemp("word_pieces")
    bert_tokenizer.write(root / "plain", [*WORDS, "猫"])
    load_tokenizer(root / "plain", "bert").save_pretrained(root / "saved")
    assert not (root / "saved" / "vocab.txt").exists()
    return {name: root / name for name in ("plain", "saved")}


@pytest.fixture(scope="module")
def tokenizer(folders):
    return load_tokenizer(folders["plain"], "bert")


@pytest.fixture(scope="module")
def vocabulary(folders):
    words = (folders["plain"] / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return {word: i for i, word in enumerate(words[:-1])}


def derived(vocabulary: dict[str, int], text: str) -> list[int]:
    """BERT's ids derived again (Devlin et al. 2019, after Wu et al. 2016).

    Small letters without accents; punctuation and Chinese characters stand alone; of
    each word the longest beginning that is known is cut off, again and again.
    """
    letters = []
    for letter in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(letter)
        alone = kind[0] in "PS" or "\u4e00" <= letter <= "\u9fff"
        if kind != "Mn":
            letters.append(f" {letter} " if alone else letter)
    ids = [CLS]
    for word in "".join(letters).split():
        pieces, start = [], 0
        while start < len(word):
            before = "##" if start else ""
            ends = range(len(word), start, -1)
            known = [end for end in ends if before + word[start:end] in vocabulary]
            if not known:
                pieces = [UNK]
                break
            pieces.append(vocabulary[before + word[start : known[0]]])
            start = known[0]
        ids += pieces
    return [*ids, SEP]


@pytest.mark.parametrize("layout", ["plain", "saved"])
def test_prompts_equal_word_pieces_derived_again(folders, vocabulary, layout):
    tokenize = PromptTokenizer(load_tokenizer(folders[layout], "bert"), V, {})
    ids = tokenize(PROMPTS)
    assert ids.shape == (len(PROMPTS), 77)
    expected = [derived(vocabulary, text) for text in PROMPTS]
    assert ids.tolist() == [each + [PAD] * (77 - len(each)) for each in expected]


def test_the_ids_are_those_of_diffusers_pipeline(folders, tokenizer):
    """LDMTextToImagePipeline's call, of the published folder's length of 512."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer.from_pretrained(folders["plain"])
    assert theirs.model_max_length == 512
    prompts = [*PROMPTS, "cat " * 100]
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True)
    ids = PromptTokenizer(tokenizer, V, {})(prompts)
    assert ids.tolist() == expected["input_ids"]


def test_a_word_is_all_its_vectors_wherever_it_stands(tokenizer, vocabulary):
    tokenize = PromptTokenizer(tokenizer, V, {"<cat>": 2, "<Käse>": 1})
    a, cat, dot = (vocabulary[word] for word in ("a", "cat", "."))
    for text, expected in {
        "a <cat>": [a, V, V + 1],
        "<CAT>cat.": [V, V + 1, cat, dot],
        "a<cat>_1": [a, V + 1],
        # BERT's normal form has neither capitals nor accents.
        "<Käse> <kase>": [V + 2, V + 2],
    }.items():
        [ids] = tokenize([text]).tolist()
        assert ids[: len(expected) + 3] == [CLS, *expected, SEP, PAD]


@pytest.mark.parametrize("word", ["cat", "Cat", "##ing", "*", "[CLS]", "p", "猫"])
def test_a_placeholder_that_is_a_word_is_refused(tokenizer, word):
    with pytest.raises(UserError, match="is already in the tokenizer's vocabulary"):
        PromptTokenizer(tokenizer, V, {word: 1})


@pytest.mark.parametrize("other", ["<kase>", "<KÄSE>x"])
def test_placeholders_that_prompts_confuse_are_refused(tokenizer, other):
    with pytest.raises(UserError, match="is part of the name of another"):
        PromptTokenizer(tokenizer, V, {"<Käse>": 1, other: 1})


def test_a_word_that_only_pieces_spell_may_be_learned(tokenizer):
    assert not known_words.is_known(tokenizer, "collie")
    [ids] = PromptTokenizer(tokenizer, V, {"collie": 1})(["a collie"]).tolist()
    assert ids[2] == V


def test_what_has_no_room_is_cut_off_or_refused(tokenizer, caplog):
    tokenize = PromptTokenizer(tokenizer, V, {"<cat>": 2})
    [ids] = tokenize(["a " * 73 + "<cat>"]).tolist()
    assert ids[-3:] == [V, V + 1, SEP]
    with pytest.raises(UserError, match=r"78 tokens .* limit is 77: '<cat>_1' would"):
        tokenize(["a " * 74 + "<cat>"])
    tokenize(["<cat> " + "a " * 72 + "painting"])
    [line] = [record.getMessage() for record in caplog.records]
    assert "has 78 tokens" in line and "'ing' is cut off" in line


def test_an_initializer_may_be_several_pieces(tokenizer, vocabulary, caplog):
    pieces = [vocabulary[piece] for piece in ("colli", "##e")]
    assert initializer_ids(tokenizer, " Collie ") == pieces
    warn_of_unused_pieces(tokenizer, "collie", 2)
    assert not caplog.records
    warn_of_unused_pieces(tokenizer, "collie", 1)
    assert "'collie' is 2 pieces, colli + ##e;" in caplog.text


@pytest.mark.parametrize("text", ["", " \n", "кошка", "a [SEP]", "a кошка"])
def test_an_initializer_without_a_word_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="initializer_token"):
        initializer_ids(tokenizer, text)


def test_what_continues_a_word_is_shown_so(tokenizer, vocabulary):
    table = np.random.default_rng(0).normal(size=(V, 8)).astype(np.float32)
    wanted = {"cat": "cat", "##ing": "…ing", "[SEP]": "[SEP]"}
    rows = table[[vocabulary[word] for word in wanted]]
    found = nearest_words(tokenizer, table, rows)
    assert [near[0] for near in found] == [(word, 1.0) for word in wanted.values()]


def test_tokenizers_of_the_other_kind_are_refused(folders, tmp_path):
    clip = write_clip_tokenizer(tmp_path / "clip")
    load_tokenizer(clip).save_pretrained(tmp_path / "saved")
    told = r"expected BERT's tokenizer, vocab.txt or tokenizer.json, and found neither"
    with pytest.raises(UserError, match=told):
        load_tokenizer(clip, "bert")
    with pytest.raises(UserError, match="marks with ## what continues"):
        load_tokenizer(tmp_path / "saved", "bert")
    told = "expected CLIP's tokenizer, vocab.json with merges.txt or tokenizer.json"
    with pytest.raises(UserError, match=told):
        load_tokenizer(folders["plain"])
    with pytest.raises(UserError, match="marks the ends of words with </w>"):
        load_tokenizer(folders["saved"])


def test_settings_that_are_no_object_are_told(folders, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((folders["plain"] / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"tokenizer_config.json: "):
        load_tokenizer(tmp_path, "bert")
