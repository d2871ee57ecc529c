"""The question after a misspelt name leads to what was meant, or nowhere."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ti_flax.config.concepts import ALL_GROUPS
from ti_flax.config.generate_keys import GROUPS
from ti_flax.runtime.arguments import nearest

KEYS = [key for group in ALL_GROUPS.values() for key in group.model_fields]
OTHER_KEYS = [key for group in GROUPS.values() for key in group.model_fields]
NONE = "--help lists all keys"


def suggested(name, known=KEYS):
    told = nearest(name, known)
    return [] if told == NONE else told.removeprefix("did you mean ")[:-1].split(" or ")


@functools.cache
def slips(one, other):
    """Optimal string alignment, by its recursive definition."""
    if not one or not other:
        return len(one) + len(other)
    ways = [
        slips(one[1:], other) + 1,
        slips(one, other[1:]) + 1,
        slips(one[1:], other[1:]) + (one[0] != other[0]),
    ]
    if one[:2] == other[:2][::-1] and len(one) > 1:
        ways.append(slips(one[2:], other[2:]) + 1)
    return min(ways)


@pytest.mark.parametrize("key", sorted({*KEYS, *OTHER_KEYS}))
def test_each_key_is_found_behind_a_single_slip(key):
    known = KEYS if key in KEYS else OTHER_KEYS
    for i in {0, len(key) // 2, len(key) - 2}:
        left_out, changed = key[:i] + key[i + 1 :], key[:i] + "x" + key[i + 1 :]
        doubled = key[: i + 1] + key[i:]
        swapped = key[:i] + key[i : i + 2][::-1] + key[i + 2 :]
        for typed in {left_out, changed, doubled, swapped} - {*known}:
            # Of two letters nothing can be said.
            if len(typed) > 2 and slips(typed, key) == 1:
                assert key in suggested(typed, known), typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning-rate", ["learning_rate"]),
        ("LearningRate", ["learning_rate"]),
        ("--max-train-step", ["max_train_steps"]),
        ("--gradient_acumulation_step", ["gradient_accumulation_steps"]),
        ("--adam_beta3", ["adam_beta1", "adam_beta2"]),
        ("resoluton", ["resolution"]),
        # A part in whole words.
        ("--prompt", ["validation_prompt"]),
        ("--output", ["output_dir"]),
        ("--warmup_steps", ["lr_warmup_steps"]),
        ("--cache_dir", ["compilation_cache_dir"]),
        ("--data_dir", ["train_data_dir", "conditioning_data_dir"]),
        ("--token", ["initializer_token", "placeholder_token", "hub_token"]),
        # What has nothing near.
        ("--version", []),
        ("--token_strings", []),
        ("--xformers", []),
        ("--clip_skip", []),
        ("--network_dim", []),
        ("--guidance", []),
        ("--caption", []),  # of many
        ("--no_such_key", []),
        ("--x", []),
        ("--", []),
        ("", []),
    ],
)
def test_what_people_type_leads_where_they_meant(typed, meant):
    assert sorted(suggested(typed)) == sorted(meant)


def test_words_of_the_language_are_no_misspelt_keys():
    words = """
        version attention config dataset epochs optimizer network lora rank alpha dim
        text encoder unet training image images width height scheduler_type sampler
        cfg negative upscale hires tiling style lowvram medvram port listen share gpu
        device precision_full checkpoint_path workers save name token clip skip weights
        """
    for word in words.split():
        for found in suggested(word):
            close = slips(word, found) <= max(len(word) // 4, 1)
            parts = found.split("_")
            ends = word in (parts[0], parts[-1])
            assert close or ends, (word, found)


letters = st.text(alphabet="abcdeglnorst_", min_size=1, max_size=16)


@given(letters, st.sampled_from(KEYS))
@settings(max_examples=40, deadline=None)
def test_what_is_suggested_is_as_near_as_anything(name, key):
    half = len(key) // 2
    for typed in (name, key[:half] + name[:3] + key[half + 1 :]):
        found = suggested(typed)
        distances = {one: slips(typed.strip("_"), one) for one in KEYS}
        if typed.strip("_") != typed or not found:
            continue
        least = min(distances.values())
        limit = max(len(typed) // 4, 1) if len(typed) > 2 else 0
        if least <= limit:
            assert found == [one for one in KEYS if distances[one] == least]
        else:
            assert all(f"_{typed}_" in f"_{one}_" for one in found)


def test_the_first_of_equals_is_not_preferred():
    for names in itertools.permutations(["cat", "bat"]):
        assert nearest("rat", names) == f"did you mean {names[0]} or {names[1]}?"
    assert nearest("rat", ["cat", "bat", "mat", "hat"]) == NONE
    assert nearest("rat", []) == NONE
