"""The words nearest to a row, as people write them."""

import string

import numpy as np
import pytest

from ti_flax.text.nearest_words import nearest_words, words_near
from ti_flax.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    """Of single bytes, each at a word's end and before it."""
    return load_tokenizer(tiny_model / "tokenizer")


def test_the_nearest_words_are_those_of_the_largest_cosine(tokenizer):
    # CLIP's mark of a word's end; what lacks it only begins longer words.
    spelt = {c + "</w>": c for c in string.ascii_lowercase}
    spelt |= {c: f"{c}…" for c in string.ascii_lowercase}
    ids = dict(zip(spelt, tokenizer.convert_tokens_to_ids(list(spelt)), strict=True))
    random = np.random.default_rng(0)
    # All other words are zeros, and near to nothing.
    table = np.zeros((len(tokenizer) + 6, 16), np.float32)
    table[list(ids.values())] = random.normal(size=(len(ids), 16))
    rows = random.normal(size=(3, 16)).astype(np.float32)
    rows[1] = 5 * table[ids["t</w>"]] + 0.01
    # No word has this row, however near it is.
    table[-1] = rows[2]
    found = nearest_words(tokenizer, table, rows)
    for row, near in zip(rows.astype(np.float64), found, strict=True):
        cosines = {
            spelt[token]: row
            @ table[id_]
            / (np.linalg.norm(row) * np.linalg.norm(table[id_]))
            for token, id_ in ids.items()
        }
        best = sorted(cosines, key=cosines.get, reverse=True)[:5]
        assert [word for word, _ in near] == best
        expected = [cosines[word] for word in best]
        # To four digits.
        np.testing.assert_allclose([c for _, c in near], expected, rtol=0, atol=6e-5)
    assert found[1][0][0] == "t"


def test_a_row_of_zeros_is_near_to_nothing(tokenizer):
    table = np.ones((len(tokenizer), 16), np.float32)
    [near] = nearest_words(tokenizer, table, np.zeros((1, 16), np.float32))
    assert [cosine for _, cosine in near] == [-1.0] * 5


def test_words_near_are_whole_words_of_letters(tokenizer):
    random = np.random.default_rng(1)
    table = random.normal(size=(len(tokenizer) + 6, 16)).astype(np.float32)
    row = random.normal(size=16).astype(np.float32)
    # Only these are words of letters with an end; capitals are read as small ones.
    tokens = [f"{letter}</w>" for letter in string.ascii_lowercase]
    found_ids = tokenizer.convert_tokens_to_ids(tokens)
    ids = dict(zip(string.ascii_lowercase, found_ids, strict=True))
    cosines = {c: row @ table[i] / np.linalg.norm(table[i]) for c, i in ids.items()}
    expected = sorted(cosines, key=cosines.get, reverse=True)
    found = words_near(tokenizer, table, row, 1000)
    assert [word for word in found if word in ids] == expected
    assert all(word.isalpha() for word in found)
    without = words_near(tokenizer, table, row, 3, without=found[:2])
    assert without == found[2:5]
    # However long the rows are.
    table[ids["q"]] *= 1000
    assert words_near(tokenizer, table, row, 1000) == found
