"""Captions to prompts: kohya's order (sd-scripts, process_caption), and its numbers."""

import collections
import itertools

import numpy as np
import pytest

from ti_flax.text.captions import Rules, prompts_of

WORD = "<toy>"


def prompts(text, picture=0, templates=None, **rules):
    given = () if templates is None else (templates,)
    return prompts_of(text, Rules(WORD, **rules), picture, *given)


# Text, keys -> prompts; nothing in them is random.
PLAIN = [
    ("a red cat", {}, ["<toy>, a red cat"]),
    ("a [name] on a table", {}, ["a <toy> on a table"]),
    ("a {} and [name]", {}, ["a <toy> and <toy>"]),
    ("a <TOY> here", {}, ["a <toy> here"]),
    ("<toy>_1 alone", {}, ["<toy>_1 alone"]),
    ("sks dog, sksy", {"trigger_word": "sks"}, ["<toy> dog, sksy"]),
    ("a Sks Dog", {"trigger_word": "sks dog"}, ["a <toy>"]),
    ("a cafe\u0301", {"trigger_word": "caf\u00e9"}, ["a <toy>"]),
    # No mark, and a user who said where it is or what stands in front: left alone.
    ("a cat", {"trigger_word": "sks"}, ["a cat"]),
    ("a cat", {"caption_prefix": ""}, ["a cat"]),
    # kohya joins prefix and suffix with a space, invoke-training's has its own.
    ("a cat", {"caption_prefix": "photo of {}"}, ["photo of <toy> a cat"]),
    ("a cat", {"caption_prefix": "{}, "}, ["<toy>, a cat"]),
    ("{} x", {"caption_suffix": "film grain"}, ["<toy> x film grain"]),
    ("[name]", {"caption_prefix": "a", "caption_suffix": "b"}, ["a <toy> b"]),
    # Lines: OneTrainer draws one, kohya without wildcards takes the first, A1111 all.
    ("1\n2 {}\n3", {}, ["<toy>, 1", "2 <toy>", "<toy>, 3"]),
    ("1\n2 {}", {"caption_lines": "first"}, ["<toy>, 1"]),
    ("1\n2 {}", {"caption_lines": "join"}, ["1 2 <toy>"]),
    # Nothing to choose from: one form, wildcards or tags or not.
    ("{a}, {} {{x}}", {"enable_wildcard": True}, ["a, <toy> {x}"]),
    ("{a|b} {}", {}, ["{a|b} <toy>"]),
    ("{},  b ", {"shuffle_caption": True, "keep_tokens": 1}, ["<toy>, b"]),
    ("{}; b", {"shuffle_caption": True, "caption_separator": "|"}, ["<toy>; b"]),
    ("{}, a ||| b", {"keep_tokens_separator": "|||"}, ["<toy>, a, b"]),
]


@pytest.mark.parametrize(("text", "keys", "expected"), PLAIN)
def test_a_caption_without_chance_is_one_prompt_a_line(text, keys, expected):
    assert prompts(text, **keys) == expected


# Templates of A1111 and text -> prompts.
FRAMED = [
    (["a {}, [filewords]", "the {}"], "x", ["a <toy>, x", "the <toy>"]),
    (["[filewords]"], "x", ["<toy>, x"]),
    (["of [filewords]"], "a [name]", ["of a <toy>"]),
    (["{} [filewords]"], "a\nb", ["<toy> a", "<toy> b"]),
    (["{} [filewords]"], "", ["<toy> "]),
]


@pytest.mark.parametrize(("templates", "text", "expected"), FRAMED)
def test_filewords_are_the_caption_and_name_the_word(templates, text, expected):
    assert prompts(text, templates=templates) == expected


TAGS = [WORD, *"abcdefgh"]
TEXT = ", ".join(["{}", *TAGS[1:]])


def tags_of(prompt):
    return prompt.split(", ")


def test_shuffled_tags_are_the_same_tags_in_every_order():
    made = prompts(TEXT, shuffle_caption=True, caption_variants=4096)
    assert len(made) == 4096
    counts = np.zeros((9, 9))
    for prompt in made:
        assert sorted(tags_of(prompt)) == sorted(TAGS)
        for place, tag in enumerate(tags_of(prompt)):
            counts[place, TAGS.index(tag)] += 1
    # Each tag at each place 4096 / 9 = 455 times; its standard deviation is 20.
    assert abs(counts - 4096 / 9).max() < 5 * 20.1
    few = prompts("{}, a, b", shuffle_caption=True, caption_variants=600)
    seen = collections.Counter(few)
    assert len(seen) == 6 and min(seen.values()) > 50


@pytest.mark.parametrize("keep", [1, 3, 9, 20])
def test_kept_tags_stay_in_front(keep):
    made = prompts(
        TEXT, shuffle_caption=True, keep_tokens=keep, caption_tag_dropout_rate=0.5
    )
    assert len(made) == (16 if keep < 9 else 1)
    for prompt in made:
        assert tags_of(prompt)[:keep] == TAGS[:keep]


def test_a_separator_keeps_tags_in_front_and_behind():
    made = prompts(
        "{}, a ||| b, c, d ||| z",
        keep_tokens_separator="|||",
        shuffle_caption=True,
        caption_variants=200,
    )
    found = {tuple(tags_of(prompt)) for prompt in made}
    middles = itertools.permutations("bcd")
    assert found == {(WORD, "a", *middle, "z") for middle in middles}


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_tags_are_dropped_at_their_rate_and_the_word_never(rate):
    made = prompts(TEXT, caption_tag_dropout_rate=rate, caption_variants=2048)
    kept = [len(tags_of(prompt)) - 1 for prompt in made]
    assert all(WORD in prompt for prompt in made)
    error = np.sqrt(rate * (1 - rate) / (2048 * 8))
    assert abs(np.mean(kept) / 8 - (1 - rate)) <= 5 * error
    # What is left is in order.
    for prompt in made:
        left = [TAGS.index(tag) for tag in tags_of(prompt)]
        assert left == sorted(left)


def test_wildcards_are_drawn_equally_often():
    made = prompts("{} {a|b|c} {{x|y}} {d}", enable_wildcard=True, caption_variants=900)
    seen = collections.Counter(made)
    assert set(seen) == {f"<toy> {one} {{x|y}} d" for one in "abc"}
    assert min(seen.values()) > 300 - 5 * 14.2


def test_lines_and_templates_come_equally_often():
    made = prompts(
        "{}, a, b\n{}, c, d\n{}, e, f",
        templates=["1 [filewords]", "2 [filewords]"],
        shuffle_caption=True,
        caption_variants=16,
    )
    assert len(made) == 18  # the next multiple of 6
    kinds = collections.Counter((p[0], *sorted(set(p[1:]) & set("ace"))) for p in made)
    assert set(kinds.values()) == {3} and len(kinds) == 6


def test_variants_are_functions_of_seed_picture_and_number():
    keys = {"shuffle_caption": True, "caption_variants": 8}
    made = prompts(TEXT, **keys)
    assert prompts(TEXT, **keys) == made
    assert prompts(TEXT, **keys | {"caption_variants": 4}) == made[:4]
    for other in (prompts(TEXT, picture=1, **keys), prompts(TEXT, seed=1, **keys)):
        assert not set(made) & set(other)


def test_variants_are_what_they_were():
    """They enter the fingerprint of a run: other ones end its resuming."""
    keys = {"shuffle_caption": True, "keep_tokens": 1, "caption_variants": 3}
    assert prompts("{}, a, b, c, d", seed=7, **keys) == [
        "<toy>, a, b, d, c",
        "<toy>, a, c, b, d",
        "<toy>, c, b, d, a",
    ]
