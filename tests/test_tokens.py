"""Tokens: CLIP's real vocabulary, placeholders, prompts at the limit, first rows."""

import copy
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

from ti_flax import tokens
from ti_flax.errors import UserError

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
        tokens.load_tokenizer(folders[name]).save_pretrained(root / f"{name}-json")
        assert not (root / f"{name}-json" / "vocab.json").exists()
    return folders


@pytest.fixture(scope="module")
def tokenizer(folders):
    return tokens.load_tokenizer(folders["sd1"])


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
    prompt = tokens.PromptTokenizer(tokenizer, V, {})
    known = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert prompt(["a photo of a cat"]).tolist() == [pad(known)]


@pytest.mark.parametrize("layout", ["sd1", "sd1-json", "bare"])
def test_prompts_equal_byte_pairs_derived_again(folders, layout):
    prompt = tokens.PromptTokenizer(tokens.load_tokenizer(folders[layout]), V, {})
    ids = prompt(PROMPTS)
    assert ids.dtype == np.int32
    expected = [pad(byte_pair_ids(folders["sd1"], text)) for text in PROMPTS]
    assert ids.tolist() == expected


@pytest.mark.parametrize("layout", ["sd2", "sd2-json"])
def test_sd2_pads_with_its_own_token(folders, layout):
    prompt = tokens.PromptTokenizer(tokens.load_tokenizer(folders[layout]), V, {})
    known = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert prompt(["a photo of a cat"]).tolist() == [pad(known, pad_id=0)]


def test_length_stated_in_the_folder_is_kept(tmp_path):
    folder = write_clip_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"model_max_length": 16})
    )
    prompt = tokens.PromptTokenizer(tokens.load_tokenizer(folder), V, {})
    assert prompt(["a cat"]).tolist() == [pad([49406, 320, 2368, 49407], length=16)]


def test_loading_a_tokenizer_brings_in_no_torch_and_says_nothing(folders):
    code = (
        "import sys; from pathlib import Path; from ti_flax import tokens\n"
        "t = tokens.load_tokenizer(Path(sys.argv[1]))\n"
        "tokens.PromptTokenizer(t, 49408, {'<cat>': 2})(['<cat>' + ' a' * 99])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folders["sd1"]],
        cwd=Path(__file__).parents[1],
        env={k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected CLIP's tokenizer.*found neither"):
        tokens.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="found neither"):
        tokens.load_tokenizer(tmp_path / "missing")


def test_damaged_tokenizer_is_refused(tmp_path):
    folder = write_clip_tokenizer(tmp_path)
    half = (folder / "vocab.json").read_text()[:1000]
    (folder / "vocab.json").write_text(half)
    with pytest.raises(UserError, match="cannot be read") as caught:
        tokens.load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_of_another_family_is_refused(tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "Ġa": 3, START: 4, END: 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="another family's"):
        tokens.load_tokenizer(tmp_path)


PLACEHOLDERS = ["<cat-toy>", "cat_toy!", "S*", "sks", "<猫>", "don't", "Ünï"]
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
    ids = tokens.PromptTokenizer(tokenizer, V, {placeholder: 1})(prompts)
    assert (ids[: len(SENTENCES)] == V).any(axis=1).all()
    assert ids.tolist() == padded(with_words(tokenizer, [placeholder]), prompts)


@pytest.mark.parametrize("placeholder", ["<cat-toy>", "cat_toy!", "sks", "<猫>"])
@pytest.mark.parametrize("num_vectors", [2, 3, 12])
def test_vectors_expand_as_in_diffusers(tokenizer, placeholder, num_vectors):
    pytest.importorskip("torch")
    textual_inversion = pytest.importorskip("diffusers.loaders.textual_inversion")
    oracle = with_words(tokenizer, tokens.vector_names(placeholder, num_vectors))
    prompts = [sentence.replace("{}", placeholder) for sentence in SENTENCES] + PROMPTS
    expanded = textual_inversion.TextualInversionLoaderMixin().maybe_convert_prompt(
        prompts, oracle
    )
    ids = tokens.PromptTokenizer(tokenizer, V, {placeholder: num_vectors})(prompts)
    assert ids.tolist() == padded(oracle, expanded)


@pytest.mark.parametrize("placeholder", ["<cat>", "S*", "Sks"])
def test_every_mention_has_all_its_vectors(tokenizer, placeholder):
    prompt = tokens.PromptTokenizer(tokenizer, V, {placeholder: 3})
    mentions = [placeholder, placeholder.upper(), placeholder.lower()]
    known = [49406, 320, 1125, 539, V, V + 1, V + 2, 49407]
    for mention in mentions:
        assert prompt([f"a photo of {mention}"]).tolist() == [pad(known)]


def test_a_vector_named_by_itself_is_not_expanded(tokenizer):
    prompt = tokens.PromptTokenizer(tokenizer, V, {"<cat>": 12})
    (ids,) = prompt(["<cat>_1 <cat>_11 <cat>_10, <cat>"]).tolist()
    vectors = [V + 1, V + 11, V + 10, 267, *range(V, V + 12)]
    assert ids == pad([49406, *vectors, 49407])


def test_ids_follow_the_order_of_words_from_the_end_of_the_table(tokenizer):
    words = {"<dog>": 2, "<cat>": 3, "sks": 1}
    prompt = tokens.PromptTokenizer(tokenizer, 50000, words)
    (ids,) = prompt(["sks <cat> <dog>"]).tolist()
    expected = [50005, 50002, 50003, 50004, 50000, 50001]
    assert ids == pad([49406, *expected, 49407])


def test_tokenizer_of_the_caller_is_left_as_it_was(folders):
    tokenizer = tokens.load_tokenizer(folders["sd1"])
    before = tokenizer("a <cat-toy> photo")["input_ids"]
    tokens.PromptTokenizer(tokenizer, V, {"<cat-toy>": 2})(["a <cat-toy> photo"])
    assert len(tokenizer) == V
    assert tokenizer("a <cat-toy> photo")["input_ids"] == before


def test_no_prompt_gives_no_row(tokenizer):
    assert tokens.PromptTokenizer(tokenizer, V, {"<cat>": 1})([]).shape == (0, 77)


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
        ({"sks": 1, "<dog>": 1, "sksa": 1}, "'sks' is part .* 'sksa'"),
        ({"<cat>_1": 1, "<cat>": 1}, "'<cat>' is part .* '<cat>_1'"),
        ({"<cat>": 3, "t>_2": 1}, "'t>_2' is part .* '<cat>' with 3"),
        ({"<Cat>": 1, "<cat>": 1}, "is part of the name"),
        ({f"my{END}": 1}, "cannot be one token"),
    ],
)
def test_placeholders_that_cannot_be_told_apart_are_refused(tokenizer, words, message):
    with pytest.raises(UserError, match=re.compile(message)) as caught:
        tokens.PromptTokenizer(tokenizer, V, words)
    assert "\n" not in str(caught.value)


def test_placeholder_that_the_padding_token_would_split_is_refused(folders):
    sd2 = tokens.load_tokenizer(folders["sd2"])
    with pytest.raises(UserError, match="'toy_cat!' cannot be one token"):
        tokens.PromptTokenizer(sd2, V, {"toy_cat!": 1})


def test_placeholder_saved_with_a_tokenizer_is_refused(tokenizer, tmp_path):
    with_words(tokenizer, ["<cat>_1"]).save_pretrained(tmp_path)
    saved = tokens.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="'<cat>_1' is already in"):
        tokens.PromptTokenizer(saved, V + 1, {"<cat>": 2})
    (ids,) = tokens.PromptTokenizer(saved, V + 1, {"<cat>": 1})(["<cat> <cat>_1"])
    assert ids.tolist() == pad([49406, V + 1, V, 49407])


def test_table_smaller_than_the_tokenizer_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"knows 49408 words .* only 49407 rows"):
        tokens.PromptTokenizer(tokenizer, V - 1, {"<cat>": 1})


def test_prompt_that_just_fits_keeps_its_placeholder(tokenizer):
    prompt = tokens.PromptTokenizer(tokenizer, V, {"<cat>": 2})
    (ids,) = prompt(["a " * 73 + "<cat>"]).tolist()
    assert ids == [49406, *[320] * 73, V, V + 1, 49407]


@pytest.mark.parametrize("num_words", [74, 75, 200])
def test_prompt_that_loses_its_placeholder_is_refused(tokenizer, num_words):
    prompt = tokens.PromptTokenizer(tokenizer, V, {"<cat>": 2})
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
    ids = tokens.PromptTokenizer(tokenizer, V, {"<cat>": 1})([text])
    assert ids.tolist() == padded(with_words(tokenizer, ["<cat>"]), [text])
    assert ids[0, -1] == 49407


def test_truncation_saved_in_a_tokenizer_hides_no_lost_placeholder(folders, tmp_path):
    used = tokens.load_tokenizer(folders["sd1"])
    used("a cat", padding="max_length", truncation=True)
    used.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    prompt = tokens.PromptTokenizer(tokens.load_tokenizer(tmp_path), V, {"<cat>": 1})
    with pytest.raises(UserError, match="limit is 77"):
        prompt(["a " * 90 + "<cat>"])
    assert prompt(["<cat>"]).tolist() == [pad([49406, V, 49407])]


def test_initializer_may_be_several_words(tokenizer):
    assert tokens.initializer_ids(tokenizer, "cat") == [2368]
    assert tokens.initializer_ids(tokenizer, " Cat toy ") == [2368, 5988]


@pytest.mark.parametrize("text", ["", "  \n", END, f"cat {START}"])
def test_initializer_without_a_word_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="initializer_token"):
        tokens.initializer_ids(tokenizer, text)


def test_initializer_outside_a_small_vocabulary_is_refused(tmp_path):
    vocabulary = {"a": 0, "a</w>": 1, START: 2, END: 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = tokens.load_tokenizer(tmp_path)
    assert tokens.initializer_ids(tokenizer, "aa") == [0, 1]
    with pytest.raises(UserError, match="'ab' must be"):
        tokens.initializer_ids(tokenizer, "ab")


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
    rows = tokens.initial_rows(table, ids, num_vectors, jitter=0.0, seed=0)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[chosen])


def test_only_vectors_equal_to_an_earlier_one_are_jittered(table):
    rows = tokens.initial_rows(table, [7, 9, 7], 6, jitter=0.1, seed=3)
    np.testing.assert_array_equal(rows[[0, 2]], table[[7, 9]])
    moved = rows[[1, 3, 4, 5]] - table[[7, 9, 7, 7]]
    assert (moved != 0).all()
    assert len(np.unique(rows, axis=0)) == 6


def test_jitter_is_in_units_of_each_coordinates_deviation(table):
    rows = tokens.initial_rows(table, [7], 4001, jitter=0.25, seed=3)
    units = (rows[1:] - table[7]) / (0.25 * np.std(table, axis=0))
    # 4000 draws: the mean is known to 1/sqrt(4000), the deviation to 1/sqrt(8000).
    np.testing.assert_allclose(units.mean(axis=0), 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(units.std(axis=0), 1, atol=5 / 8000**0.5)


def test_random_start_has_the_vocabularys_mean_and_deviation(table):
    rows = tokens.initial_rows(table, None, 4000, jitter=0.1, seed=5)
    assert rows.dtype == np.float32
    units = (rows - np.mean(table, axis=0)) / np.std(table, axis=0)
    np.testing.assert_allclose(units.mean(axis=0), 0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(units.std(axis=0), 1, atol=5 / 8000**0.5)
    assert len(np.unique(rows, axis=0)) == 4000


@pytest.mark.parametrize("ids", [None, [7]])
def test_initial_rows_are_a_function_of_the_seed(table, ids):
    def rows(seed):
        return tokens.initial_rows(table, ids, 3, jitter=0.1, seed=seed)

    np.testing.assert_array_equal(rows(1), rows(1))
    assert (rows(1)[1:] != rows(2)[1:]).all()
