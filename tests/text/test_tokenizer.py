"""Tokens: CLIP's real vocabulary, placeholders, prompts at the limit, first rows."""

import copy
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from clip_vocabulary import END, START, byte_symbols, write_clip_tokenizer

from ti_flax.config import run_config
from ti_flax.models import base_model
from ti_flax.runtime.errors import UserError
from ti_flax.text import known_words
from ti_flax.text.initial_rows import (
    initial_rows,
    initializer_ids,
    warn_of_unused_pieces,
)
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer, vector_names
from ti_flax.training.inputs import _prompt_tokenizer

V = 49408
PROMPTS = [
    "a photo of a cat",
    "",
    "A Photo of a CAT, in the style of Van Gogh!!",
    "it's what they'd've wanted; we'll see 12345 of 'em",
    "  spaced\t out\n words ",
    "ein Mädchen mit Grüßen aus Köln",
    "une ÉCOLE d'été, cafe\u0301",
    "猫の写真 и кошка 고양이",
    "emoji 🐈‍⬛ and ½ ²",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "don't <stop> #now @home :-) ... (really?)",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizer folders by name: as repositories ship them, and as saved again."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {
        "sd1": write_clip_tokenizer(root / "sd1"),
        "sd2": write_clip_tokenizer(root / "sd2", pad_token="!"),
        "bare": write_clip_tokenizer(root / "bare"),
    }
    (root / "bare" / "tokenizer_config.json").unlink()
    (root / "bare" / "special_tokens_map.json").unlink()
    for name in ("sd1", "sd2"):
        folders[f"{name}-json"] = root / f"{name}-json"
        load_tokenizer(folders[name]).save_pretrained(root / f"{name}-json")
        assert not (root / f"{name}-json" / "vocab.json").exists()
    return folders


@pytest.fixture(scope="module")
def loaded(folders):
    """Tokenizers by name, read once: what is made of one leaves it as it was."""
    return functools.cache(lambda name: load_tokenizer(folders[name]))


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded("sd1")


def pad(ids, length=77, pad_id=49407):
    return ids + [pad_id] * (length - len(ids))


def byte_pair_ids(folder: Path, text: str) -> list[int]:
    """CLIP's encoding derived again (Radford et al. 2021, after Sennrich et al. 2016).

    Lower-case; cut into words; spell each in byte symbols, the last one marked as the
    word's end; then always join the neighbours that were joined first in training.
    """
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    rank = {tuple(line.split()): i for i, line in enumerate(lines)}
    symbols = byte_symbols()
    words = regex.findall(
        r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        " ".join(unicodedata.normalize("NFC", text).lower().split()),
    )
    ids = [vocabulary[START]]
    for word in words:
        parts = [symbols[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while pairs := [p for p in itertools.pairwise(parts) if p in rank]:
            best = min(pairs, key=rank.__getitem__)
            i = list(itertools.pairwise(parts)).index(best)
            parts[i : i + 2] = ["".join(best)]
        ids += [vocabulary[part] for part in parts]
    return [*ids, vocabulary[END]]


def test_vocabulary_is_the_one_of_clip(tokenizer):
    assert len(tokenizer) == V
    prompt = PromptTokenizer(tokenizer, V, {})
    known = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert prompt(["a photo of a cat"]).tolist() == [pad(known)]


@pytest.mark.parametrize("layout", ["sd1", "sd1-json", "bare"])
def test_prompts_equal_byte_pairs_derived_again(folders, layout):
    prompt = PromptTokenizer(load_tokenizer(folders[layout]), V, {})
    ids = prompt(PROMPTS)
    assert ids.dtype == np.int32
    expected = [pad(byte_pair_ids(folders["sd1"], text)) for text in PROMPTS]
    assert ids.tolist() == expected


@pytest.mark.parametrize("layout", ["sd2", "sd2-json"])
def test_sd2_pads_with_its_own_token(folders, layout):
    prompt = PromptTokenizer(load_tokenizer(folders[layout]), V, {})
    known = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert prompt(["a photo of a cat"]).tolist() == [pad(known, pad_id=0)]


def test_length_stated_in_the_folder_is_kept(tmp_path):
    folder = write_clip_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"model_max_length": 16})
    )
    prompt = PromptTokenizer(load_tokenizer(folder), V, {})
    assert prompt(["a cat"]).tolist() == [pad([49406, 320, 2368, 49407], length=16)]


def test_more_tokens_than_the_encoder_has_positions_are_told(tokenizer):
    prompt = PromptTokenizer(tokenizer, V, {})
    prompt.check_length(prompt.length)
    with pytest.raises(UserError, match="makes 77 tokens, the text encoder takes 76;"):
        prompt.check_length(prompt.length - 1)


def test_loading_a_tokenizer_brings_in_no_torch_and_says_nothing(folders):
    code = (
        "import logging, sys; from pathlib import Path; "
        "from ti_flax.text import tokenizer\n"
        "logging.getLogger('ti_flax').setLevel('ERROR')  # of the text cut off\n"
        "t = tokenizer.load_tokenizer(Path(sys.argv[1]))\n"
        "tokenizer.PromptTokenizer(t, 49408, {'<cat>': 2})(['<cat>' + ' a' * 99])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folders["sd1"]],
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected CLIP's tokenizer.*found neither"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="found neither"):
        load_tokenizer(tmp_path / "missing")


def test_damaged_tokenizer_is_refused(tmp_path):
    folder = write_clip_tokenizer(tmp_path)
    half = (folder / "vocab.json").read_text()[:1000]
    (folder / "vocab.json").write_text(half)
    with pytest.raises(UserError, match=r"vocab.json: not readable JSON") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_of_another_family_is_refused(tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "Ġa": 3, START: 4, END: 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="another family's"):
        load_tokenizer(tmp_path)


PLACEHOLDERS = ["<cat-toy>", "cat_toy!", "S*", "skstoy", "<猫>", "don't", "Ünï"]
SENTENCES = [
    "a photo of {}",
    "{}",
    "A {}, and {}{} again!",
    "x{}y 12{}34 '{}' ({})",
    "猫 {} é{}",
]


def with_words(tokenizer, names):
    """The oracle: transformers' own tokenizer after `add_tokens`."""
    oracle = copy.deepcopy(tokenizer)
    assert oracle.add_tokens(names) == len(names)
    return oracle


def padded(oracle, prompts):
    return oracle(prompts, padding="max_length", truncation=True)["input_ids"]


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_one_vector_is_found_as_transformers_finds_it(tokenizer, placeholder):
    prompts = [sentence.replace("{}", placeholder) for sentence in SENTENCES]
    prompts += [prompt.upper() for prompt in prompts] + PROMPTS
    ids = PromptTokenizer(tokenizer, V, {placeholder: 1})(prompts)
    assert (ids[: len(SENTENCES)] == V).any(axis=1).all()
    assert ids.tolist() == padded(with_words(tokenizer, [placeholder]), prompts)


@pytest.mark.parametrize("placeholder", ["<cat-toy>", "cat_toy!", "skstoy", "<猫>"])
@pytest.mark.parametrize("num_vectors", [2, 3, 12])
def test_vectors_expand_as_in_diffusers(tokenizer, placeholder, num_vectors):
    pytest.importorskip("torch")
    textual_inversion = pytest.importorskip("diffusers.loaders.textual_inversion")
    oracle = with_words(tokenizer, vector_names(placeholder, num_vectors))
    prompts = [sentence.replace("{}", placeholder) for sentence in SENTENCES] + PROMPTS
    expanded = textual_inversion.TextualInversionLoaderMixin().maybe_convert_prompt(
        prompts, oracle
    )
    ids = PromptTokenizer(tokenizer, V, {placeholder: num_vectors})(prompts)
    assert ids.tolist() == padded(oracle, expanded)


@pytest.mark.parametrize("placeholder", ["<cat>", "S*", "SksToy"])
def test_every_mention_has_all_its_vectors(tokenizer, placeholder):
    prompt = PromptTokenizer(tokenizer, V, {placeholder: 3})
    mentions = [placeholder, placeholder.upper(), placeholder.lower()]
    known = [49406, 320, 1125, 539, V, V + 1, V + 2, 49407]
    for mention in mentions:
        assert prompt([f"a photo of {mention}"]).tolist() == [pad(known)]


@pytest.mark.parametrize(
    "word",
    [
        *("<cat-toy>", "<猫>", "don't", "caf\u00e9-cat", "<\ud55c>", "\u00aax1"),
        *("<BumBee>", "S*", "\u00dcn\u00ef-cat", "\u01c5-x", "\u0130x1", "\u1e9e-x"),
        # Composed otherwise: as a Mac's file names are, jamo, Ångström, compatibility.
        *("cafe\u0301-cat", "\u1112\u1161\u11ab-x", "\u212b-cat", "<\uf900>"),
    ],
)
def test_a_word_that_diffusers_reads_otherwise_is_warned_of(tiny_model, caplog, word):
    pytest.importorskip("torch")
    textual_inversion = pytest.importorskip("diffusers.loaders.textual_inversion")

    model = base_model.open_model(str(tiny_model))
    encoder = model.family.text_encoders[0]
    tokenizer = load_tokenizer(tiny_model / "tokenizer")

    def keeps_all(word):
        names = vector_names(word, 3)
        oracle = with_words(tokenizer, names)
        mixin = textual_inversion.TextualInversionLoaderMixin()
        ids = oracle(mixin.maybe_convert_prompt(f"a {word}", oracle))["input_ids"]
        return set(oracle.convert_tokens_to_ids(names)) <= set(ids)

    keys = run_config.Config(
        pretrained_model_name_or_path="m",
        train_data_dir="d",
        placeholder_token=word,
        num_vectors=3,
    )
    _prompt_tokenizer(keys, tokenizer, encoder)
    assert len(caplog.records) == (not keeps_all(word))
    for record in caplog.records:
        given, better, count = record.args
        assert (given, count) == (word, 3) and keeps_all(better)
        # Both spellings may look alike: the one given is shown by its code points.
        assert ascii(word) in record.getMessage()
    # One vector is found whatever its spelling.
    caplog.clear()
    one = keys.model_copy(update={"num_vectors": 1})
    _prompt_tokenizer(one, tokenizer, encoder)
    assert not caplog.records


def test_a_vector_named_by_itself_is_not_expanded(tokenizer):
    prompt = PromptTokenizer(tokenizer, V, {"<cat>": 12})
    (ids,) = prompt(["<cat>_1 <cat>_11 <cat>_10, <cat>"]).tolist()
    vectors = [V + 1, V + 11, V + 10, 267, *range(V, V + 12)]
    assert ids == pad([49406, *vectors, 49407])


def test_ids_follow_the_order_of_words_from_the_end_of_the_table(tokenizer):
    words = {"<dog>": 2, "<cat>": 3, "skstoy": 1}
    prompt = PromptTokenizer(tokenizer, 50000, words)
    (ids,) = prompt(["skstoy <cat> <dog>"]).tolist()
    expected = [50005, 50002, 50003, 50004, 50000, 50001]
    assert ids == pad([49406, *expected, 49407])


def test_tokenizer_of_the_caller_is_left_as_it_was(folders):
    tokenizer = load_tokenizer(folders["sd1"])
    before = tokenizer("a <cat-toy> photo")["input_ids"]
    PromptTokenizer(tokenizer, V, {"<cat-toy>": 2})(["a <cat-toy> photo"])
    assert len(tokenizer) == V
    assert tokenizer("a <cat-toy> photo")["input_ids"] == before


def test_no_prompt_gives_no_row(tokenizer):
    assert PromptTokenizer(tokenizer, V, {"<cat>": 1})([]).shape == (0, 77)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cat": 1}, "'cat' is already in the tokenizer's vocabulary"),
        ({"*": 1}, "already in"),
        ({"Cat": 1}, "already in"),
        ({END: 1}, "already in"),
        ({"": 1}, "one word without whitespace"),
        ({"my cat": 1}, "one word without whitespace"),
        ({"<cat>\n": 1}, "one word without whitespace"),
        ({"skstoy": 1, "<dog>": 1, "skstoys": 1}, "'skstoy' is part .* 'skstoys'"),
        ({"<cat>_1": 1, "<cat>": 1}, "'<cat>' is part .* '<cat>_1'"),
        ({"<cat>": 3, "t>_2": 1}, "'t>_2' is part .* '<cat>' with 3"),
        ({"<Cat>": 1, "<cat>": 1}, "is part of the name"),
        ({f"my{END}": 1}, "cannot be one token"),
    ],
)
def test_placeholders_that_cannot_be_told_apart_are_refused(tokenizer, words, message):
    with pytest.raises(UserError, match=re.compile(message)) as caught:
        PromptTokenizer(tokenizer, V, words)
    assert "\n" not in str(caught.value)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("heart", "<heart>"),
        ("Heart", "<heart>"),
        ("sks", "<sks>"),
        ("7", "<7>"),
        (COMPOSED, f"<{COMPOSED}>"),
        (DECOMPOSED, f"<{COMPOSED}>"),
        (DECOMPOSED.upper(), f"<{COMPOSED}>"),
        ("É", "<é>"),
        # Entries that no whole word of a prompt is, but that `add_tokens` would reuse.
        ("anim", "<anim>"),
        ("heart</w>", "<my-cat>"),
        # The brackets would join these: "<<!!>>" is read otherwise.
        ("!!", "<my-cat>"),
        ("\N{CAT FACE}", "<my-cat>"),
        (START.upper(), "<my-cat>"),
    ],
)
@pytest.mark.parametrize("layout", ["sd1", "sd1-json", "sd2"])
def test_a_known_word_is_refused_with_a_new_one(loaded, layout, word, advice):
    tokenizer = loaded(layout)
    with pytest.raises(UserError, match="is already in") as caught:
        PromptTokenizer(tokenizer, V, {word: 1})
    assert str(caught.value).endswith(f"choose a new word such as {advice!r}")
    # The advice helps.
    PromptTokenizer(tokenizer, V, {advice: 3})


def test_every_whole_word_of_the_vocabulary_is_known(tokenizer, folders):
    vocabulary = json.loads((folders["sd1"] / "vocab.json").read_text())
    bytes_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    words = []
    for entry, id_ in vocabulary.items():
        if entry.endswith("</w>"):
            spelt = bytes(bytes_of[symbol] for symbol in entry.removesuffix("</w>"))
            word = spelt.decode(errors="replace")
            if tokenizer(word)["input_ids"] == [49406, id_, 49407]:
                words.append(word)
    assert len(words) > 32_000
    assert [w for w in words if not known_words.is_known(tokenizer, w)] == []
    for word in words[::20]:
        for spelling in (
            word.upper(),
            word.title(),
            unicodedata.normalize("NFD", word),
        ):
            if unicodedata.normalize("NFC", spelling).lower() == word:
                assert known_words.is_known(tokenizer, spelling), spelling


@pytest.mark.parametrize(
    "word",
    [
        *("<cat-toy>", "<bumbee>", "<ink-wash>", "<heart>", "<sks>", "sks-cat"),
        *("mycat123", "S*", "*s*", "heart_1", "heartheart", "hea\u200brt", "<猫>"),
    ],
)
def test_a_word_of_several_pieces_is_new(tokenizer, word):
    assert not known_words.is_known(tokenizer, word)
    ids = PromptTokenizer(tokenizer, V, {word: 2})([f"a {word} photo"])
    assert ids.tolist() == [pad([49406, 320, V, V + 1, 1125, 49407])]


def test_a_word_that_a_small_vocabulary_cannot_spell_is_new(tmp_path):
    vocabulary = {"a": 0, "a</w>": 1, START: 2, END: 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = load_tokenizer(tmp_path)
    words = {"b": False, "a": True, END: True}
    assert {w: known_words.is_known(tokenizer, w) for w in words} == words


def test_placeholder_that_the_padding_token_would_split_is_refused(folders):
    sd2 = load_tokenizer(folders["sd2"])
    with pytest.raises(UserError, match="'toy_cat!' cannot be one token"):
        PromptTokenizer(sd2, V, {"toy_cat!": 1})


def test_placeholder_saved_with_a_tokenizer_is_refused(tokenizer, tmp_path):
    with_words(tokenizer, ["<cat>_1"]).save_pretrained(tmp_path)
    saved = load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="'<cat>_1' is already in"):
        PromptTokenizer(saved, V + 1, {"<cat>": 2})
    (ids,) = PromptTokenizer(saved, V + 1, {"<cat>": 1})(["<cat> <cat>_1"])
    assert ids.tolist() == pad([49406, V + 1, V, 49407])


def test_table_smaller_than_the_tokenizer_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"knows 49408 words .* only 49407 rows"):
        PromptTokenizer(tokenizer, V - 1, {"<cat>": 1})


def test_prompt_that_just_fits_keeps_its_placeholder(tokenizer):
    prompt = PromptTokenizer(tokenizer, V, {"<cat>": 2})
    (ids,) = prompt(["a " * 73 + "<cat>"]).tolist()
    assert ids == [49406, *[320] * 73, V, V + 1, 49407]


@pytest.mark.parametrize("num_words", [74, 75, 200])
def test_prompt_that_loses_its_placeholder_is_refused(tokenizer, num_words):
    prompt = PromptTokenizer(tokenizer, V, {"<cat>": 2})
    text = "a " * num_words + "<cat>"
    with pytest.raises(UserError) as caught:
        prompt(["a <cat>", text])
    message = str(caught.value)
    assert f"{num_words + 4} tokens" in message
    assert "limit is 77" in message
    assert ("'<cat>_1'" if num_words == 74 else "'<cat>'") in message
    assert repr(text[:60] + "...") in message
    unchecked = prompt([text], check=False).tolist()
    oracle = with_words(tokenizer, ["<cat>", "<cat>_1"])
    assert unchecked == padded(oracle, [f"{text} <cat>_1"])


def test_long_prompt_that_keeps_its_placeholder_is_cut_as_transformers_cuts(tokenizer):
    text = "<cat> " + "猫 photo " * 60
    ids = PromptTokenizer(tokenizer, V, {"<cat>": 1})([text])
    assert ids.tolist() == padded(with_words(tokenizer, ["<cat>"]), [text])
    assert ids[0, -1] == 49407


@pytest.mark.parametrize(
    ("prompt", "count", "cut_off"),
    [
        ("a " * 75 + "cat", 78, "cat"),
        ("a " * 75 + "Cat, toy!", 81, "Cat, toy!"),
        # Vectors count, each as a token.
        ("<cat> " + "a " * 72 + "toy dog", 79, "toy dog"),
        ("<cat>" * 20 + "a " * 15 + "dog", 78, "dog"),
        # Of a word that has room in part, the rest is named.
        ("a " * 74 + "skstoy", 79, "stoy"),
        # Places are those of the text that was given, not of its normal form.
        (DECOMPOSED.upper() + " a" * 74 + " dog", 78, "dog"),
        ("a " * 75 + "toy " * 30, 107, "toy " * 15 + "..."),
    ],
)
def test_text_that_is_cut_off_is_named(tokenizer, caplog, prompt, count, cut_off):
    tokenize = PromptTokenizer(tokenizer, V, {"<cat>": 3})
    tokenize(["a <cat>", prompt])
    shown = prompt[:60] + "..."
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"prompt {shown!r} has {count} tokens with its start and end marks and the"
        f" limit is 77: {cut_off!r} is cut off; shorten it"
    )


def test_a_prompt_that_just_fits_is_not_warned_of(tokenizer, caplog):
    PromptTokenizer(tokenizer, V, {"<cat>": 2})(["", "<cat> " + "a " * 73])
    assert not caplog.records


def test_truncation_saved_in_a_tokenizer_hides_no_lost_placeholder(folders, tmp_path):
    used = load_tokenizer(folders["sd1"])
    used("a cat", padding="max_length", truncation=True)
    used.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    prompt = PromptTokenizer(load_tokenizer(tmp_path), V, {"<cat>": 1})
    with pytest.raises(UserError, match="limit is 77"):
        prompt(["a " * 90 + "<cat>"])
    assert prompt(["<cat>"]).tolist() == [pad([49406, V, 49407])]


def test_initializer_may_be_several_words(tokenizer):
    assert initializer_ids(tokenizer, "cat") == [2368]
    assert initializer_ids(tokenizer, " Cat toy ") == [2368, 5988]


@pytest.mark.parametrize("text", ["", "  \n", END, f"cat {START}"])
def test_initializer_without_a_word_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="initializer_token"):
        initializer_ids(tokenizer, text)


def test_initializer_outside_a_small_vocabulary_is_refused(tmp_path):
    vocabulary = {"a": 0, "a</w>": 1, START: 2, END: 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = load_tokenizer(tmp_path)
    assert initializer_ids(tokenizer, "aa") == [0, 1]
    with pytest.raises(UserError, match="'ab' must be"):
        initializer_ids(tokenizer, "ab")


@pytest.mark.parametrize(
    ("text", "num_vectors", "pieces", "used"),
    [
        ("border collie", 1, ["border</w>", "collie</w>"], ["border</w>"]),
        ("Naïve", 1, ["na", "Ã¯", "ve</w>"], ["na"]),
        ("cat", 1, ["cat</w>"], ["cat</w>"]),
        ("cat toy dog", 2, ["cat</w>", "toy</w>", "dog</w>"], ["cat</w>", "toy</w>"]),
        ("border collie", 2, ["border</w>", "collie</w>"], None),
        ("cat toy", 5, ["cat</w>", "toy</w>"], None),
    ],
)
def test_pieces_that_start_no_vector_are_told(
    tokenizer, caplog, text, num_vectors, pieces, used
):
    warn_of_unused_pieces(tokenizer, text, num_vectors)
    lines = [record.getMessage() for record in caplog.records]
    if len(pieces) <= num_vectors:
        assert not lines
        return
    assert lines == [
        f"initializer_token: {text!r} is {len(pieces)} pieces, {' + '.join(pieces)};"
        f" num_vectors {num_vectors} starts from {' + '.join(used)},"
        f" {len(pieces)} would use all"
    ]
    # What is said is done: the rows are those of the pieces named, and then of all.
    table = np.arange(V, dtype=np.float32)[:, None]
    ids = initializer_ids(tokenizer, text)
    for count, expected in ((num_vectors, used), (len(pieces), pieces)):
        rows = initial_rows(table, ids, count, jitter=0.0, seed=0)
        named = tokenizer.convert_ids_to_tokens(rows[:, 0].astype(int).tolist())
        assert named == expected


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    scale = np.linspace(0.01, 2.0, 16)
    rows = random.standard_normal((4000, 16)) * scale + np.linspace(-1, 1, 16)
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    ("ids", "num_vectors", "chosen"),
    [
        ([7], 1, [7]),
        ([7, 9], 2, [7, 9]),
        ([7, 9], 5, [7, 7, 7, 9, 9]),
        ([7, 9, 11], 2, [7, 9]),
        ([7, 9, 11], 1, [7]),
    ],
)
def test_words_are_spread_over_the_vectors(table, ids, num_vectors, chosen):
    rows = initial_rows(table, ids, num_vectors, jitter=0.0, seed=0)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[chosen])


def test_only_vectors_equal_to_an_earlier_one_are_jittered(table):
    rows = initial_rows(table, [7, 9, 7], 6, jitter=0.1, seed=3)
    np.testing.assert_array_equal(rows[[0, 2]], table[[7, 9]])
    moved = rows[[1, 3, 4, 5]] - table[[7, 9, 7, 7]]
    assert (moved != 0).all()
    assert len(np.unique(rows, axis=0)) == 6


def test_jitter_is_in_units_of_each_coordinates_deviation(table):
    rows = initial_rows(table, [7], 4001, jitter=0.25, seed=3)
    units = (rows[1:] - table[7]) / (0.25 * np.std(table, axis=0))
    # 4000 draws: the mean is known to 1/sqrt(4000), the deviation to 1/sqrt(8000).
    np.testing.assert_allclose(units.mean(axis=0), 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(units.std(axis=0), 1, atol=5 / 8000**0.5)


def test_random_start_has_the_vocabularys_mean_and_deviation(table):
    rows = initial_rows(table, None, 4000, jitter=0.1, seed=5)
    assert rows.dtype == np.float32
    units = (rows - np.mean(table, axis=0)) / np.std(table, axis=0)
    np.testing.assert_allclose(units.mean(axis=0), 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(units.std(axis=0), 1, atol=5 / 8000**0.5)
    assert len(np.unique(rows, axis=0)) == 4000


@pytest.mark.parametrize("ids", [None, [7], [7, 9, 7]])
@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_scaled_starts_have_the_same_direction(table, ids, scale):
    whole = initial_rows(table, ids, 6, 0.1, 3)
    np.testing.assert_array_equal(initial_rows(table, ids, 6, 0.1, 3, scale=1.0), whole)
    # A power of two: no digit is lost.
    np.testing.assert_array_equal(
        initial_rows(table, ids, 6, 0.1, 3, scale=scale), whole * np.float32(scale)
    )


@pytest.mark.parametrize("ids", [None, [7]])
def test_initial_rows_are_a_function_of_the_seed(table, ids):
    def rows(seed):
        return initial_rows(table, ids, 3, jitter=0.1, seed=seed)

    np.testing.assert_array_equal(rows(1), rows(1))
    assert (rows(1)[1:] != rows(2)[1:]).all()


def test_a_warning_made_an_error_is_not_blamed_on_the_files(tiny_model, monkeypatch):
    import transformers

    def warn(*_, **__):
        raise DeprecationWarning("soon gone")

    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", warn)
    with pytest.raises(DeprecationWarning, match="soon gone"):
        load_tokenizer(tiny_model / "tokenizer")
