"""Captions from files beside the pictures to rows, and through a resumed run."""

import logging

import numpy as np
import pytest
import runs

from ti_flax.checkpoints import identity
from ti_flax.models import random_model
from ti_flax.runtime import errors
from ti_flax.text.templates import OBJECT_TEMPLATES
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer
from ti_flax.training import run
from ti_flax.training.inputs import read_inputs


@pytest.fixture
def folder(tmp_path):
    return runs.draw_pictures(tmp_path / "pictures")


@pytest.fixture
def read(tiny_model, folder, tmp_path):
    """The inputs of a run over the folder, and its prompts' ids and spans."""

    def inputs(**keys):
        config = runs.make_config(tiny_model, folder, tmp_path / "out", **keys)
        return read_inputs(config)

    return inputs


@pytest.fixture
def ids_of(tiny_model):
    tokenizer = load_tokenizer(tiny_model / "tokenizer")
    vocabulary = len(tokenizer)

    def ids(sentences, vectors=1):
        tokenize = PromptTokenizer(tokenizer, vocabulary, {"<toy>": vectors})
        return tokenize(sentences, check=False)

    return ids


def caption(folder, *texts, suffix=".txt"):
    for number, text in enumerate(texts):
        (folder / f"{number}{suffix}").write_text(text)


def has(inputs, ids_of, sentences, spans):
    (ids,) = inputs.prompts.ids.values()
    np.testing.assert_array_equal(ids, ids_of(sentences))
    np.testing.assert_array_equal(inputs.prompts.spans, spans)


TEMPLATES = [template.replace("{}", "<toy>") for template in OBJECT_TEMPLATES]
ALL = [0, len(TEMPLATES)]


@pytest.mark.parametrize("source", ["auto", "none"])
def test_without_captions_prompts_and_fingerprints_are_as_they_were(
    source, read, ids_of, folder
):
    if source == "none":
        caption(folder, "a", "b", "c")
    inputs = read(caption_source=source)
    has(inputs, ids_of, TEMPLATES, [ALL] * 3)
    found = inputs.fingerprints()
    ids = np.concatenate([*inputs.prompts.ids.values()])
    assert found["template_file"] == identity.fingerprint(ids)
    assert found["train_data_dir"] == identity.fingerprint(*inputs.pictures.images)


def test_captions_take_the_place_of_templates(read, ids_of, folder, caplog):
    caption(folder, "a red [name]", "blue\na {}", "on a table")
    caplog.set_level(logging.INFO, "ti_flax")
    inputs = read()
    expected = ["a red <toy>", "<toy>, blue", "a <toy>", "<toy>, on a table"]
    has(inputs, ids_of, expected, [[0, 1], [1, 2], [3, 1]])
    told = [r.getMessage() for r in caplog.records if "caption" in r.getMessage()]
    assert told == [
        "caption_source: txt, 4 prompts such as 'a red <toy>'; with none they are "
        "templates"
    ]
    assert read(caption_source="txt").fingerprints() == inputs.fingerprints()


def test_a_picture_without_caption_has_templates(read, ids_of, folder, caplog):
    caption(folder, "one", "two", suffix=".caption")
    inputs = read(caption_dropout_rate=0.5)
    assert "no caption for 2.png; templates take their place" in caplog.text
    first = len(TEMPLATES)
    expected = [*TEMPLATES, "<toy>, one", "<toy>, two", ""]
    has(inputs, ids_of, expected, [[first, 1], [first + 1, 1], ALL])


def test_automatic1111s_templates_take_text_files_and_file_names(
    read, ids_of, folder, tmp_path
):
    (folder / "0.txt").write_text("a red cat")
    (folder / "1.png").rename(folder / "0001-a blue cat.png")
    (tmp_path / "t.txt").write_text("a [name], [filewords]\nthe [name]\n")
    inputs = read(template_file=str(tmp_path / "t.txt"))
    assert inputs.pictures.names == ("0.png", "0001-a blue cat.png", "2.png")
    expected = [
        *["a <toy>, a red cat", "the <toy>"],
        *["a <toy>, a blue cat", "the <toy>"],
        *["a <toy>, ", "the <toy>"],
    ]
    has(inputs, ids_of, expected, [[0, 2], [2, 2], [4, 2]])


def test_templates_of_the_users_own_win_over_captions_found(
    read, ids_of, folder, tmp_path, caplog
):
    caption(folder, "a", "b", "c")
    caplog.set_level(logging.INFO, "ti_flax")
    (tmp_path / "t.txt").write_text("one {}\n")
    has(
        read(template_file=str(tmp_path / "t.txt")), ids_of, ["one <toy>"], [[0, 1]] * 3
    )


def test_random_captions_have_variants(read, folder):
    caption(folder, "{}, a, b, c, d", "{}", "{}, a, b, c")
    inputs = read(shuffle_caption=True, keep_tokens=1, caption_variants=5)
    np.testing.assert_array_equal(inputs.prompts.spans, [[0, 5], [5, 1], [6, 5]])
    other = read(shuffle_caption=True, keep_tokens=1, caption_variants=5, seed=1)
    found, moved = inputs.fingerprints(), other.fingerprints()
    assert found["caption_source"] != moved["caption_source"]


def test_a_long_caption_is_warned_of_by_name(read, folder, caplog):
    caption(folder, "short", "{} " + "story " * 90, "short")
    read()
    (told,) = [r.getMessage() for r in caplog.records if "cut off" in r.getMessage()]
    assert told.startswith("caption of 1.png has up to ")
    assert "the limit is 77" in told


NO_WORD = (
    "caption of 0.png: expected [name] or {} where the new word goes, found 'a cat'"
)
# What is wrong -> the caption of 0.png, keys, what is told.
MISTAKES = {
    "no trigger": (
        "a cat",
        {"trigger_word": "sks"},
        "caption of 0.png: expected trigger_word 'sks', [name] or {} where the new "
        "word goes, found 'a cat'; write it there, or put {} into caption_prefix",
    ),
    "no word": (
        "a cat",
        {"caption_prefix": ""},
        NO_WORD,
    ),
    "a wildcard without": (
        "{[name]|a cat}",
        {"enable_wildcard": True},
        NO_WORD,
    ),
    "cut off": ("story " * 90 + "{}", {}, "'<toy>' would be cut off; shorten it"),
    "cut off by shuffling": (
        "{}, " + ", ".join(["story"] * 40),
        {"shuffle_caption": True},
        "would be cut off; shorten it, or keep the word in front with keep_tokens",
    ),
    "txt with templates": (
        "a cat",
        {"caption_source": "txt", "template_file": "t.txt"},
        "expected caption_source or template_file, found both ('txt', ",
    ),
    "filewords of nothing": (
        "a cat",
        {"caption_source": "none", "template_file": "words.txt"},
        "caption_source: expected captions for the [filewords] of template_file ",
    ),
    "words without word": (
        "a cat",
        {"caption_prefix": "", "template_file": "words.txt"},
        "caption of 0.png: expected [name] or {}",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, read, folder, tmp_path):
    text, keys, told = MISTAKES[name]
    caption(folder, text, "{}", "{}")
    (tmp_path / "t.txt").write_text("one {}\n")
    (tmp_path / "words.txt").write_text("[filewords]\n")
    if "template_file" in keys:
        keys = keys | {"template_file": str(tmp_path / keys["template_file"])}
    with pytest.raises(errors.UserError) as raised:
        read(**keys)
    line = str(raised.value)
    assert told in line and line.isprintable()


def test_keys_without_captions_are_warned_of(read, caplog):
    read(shuffle_caption=True, keep_tokens=2)
    assert "shuffle_caption, keep_tokens: no effect without captions" in caplog.text


RANDOM = {
    "shuffle_caption": True,
    "caption_tag_dropout_rate": 0.2,
    "caption_dropout_rate": 0.3,
    "enable_wildcard": True,
}


@pytest.fixture
def repeated(folder):
    """Two of kohya's folders with captions in which much is random."""
    for number, name in enumerate(("3_toy", "1_toy", "1_toy")):
        (folder / name).mkdir(exist_ok=True)
        (folder / f"{number}.png").rename(folder / name / f"{number}.png")
        text = f"{{}}, a, {{b|c}}, {number}\nanother {number}"
        (folder / name / f"{number}.txt").write_text(text)
    return folder


def test_a_resumed_run_with_captions_equals_a_whole_one(
    repeated, tiny_model, tmp_path, monkeypatch
):
    runs.skip_networks(monkeypatch)

    def train(out, **keys):
        keys = RANDOM | keys
        config = runs.make_config(tiny_model, repeated, tmp_path / out, **keys)
        run.train_concepts(config, progress=False)

    train("whole")
    train("parts", max_train_steps=2)
    train("parts", max_train_steps=4, resume_from_checkpoint="latest")
    train("parts", resume_from_checkpoint="latest")
    whole, parts = (runs.content(tmp_path / name) for name in ("whole", "parts"))
    # Each part ends in a look.
    assert runs.without_looks(parts) == runs.without_looks(whole)
    train("plain", caption_source="none", caption_dropout_rate=0.0)
    plain = runs.content(tmp_path / "plain")
    assert plain["metrics.jsonl"] != whole["metrics.jsonl"]


# What changes -> the key that the refusal begins with.
CHANGES = {
    "caption": (
        lambda f: (f / "3_toy/0.txt").write_text("{}, other"),
        "caption_source",
    ),
    "order": (
        lambda f: (f / "3_toy/0.txt").write_bytes((f / "1_toy/1.txt").read_bytes()),
        "caption_source",
    ),
    "repeats": (lambda f: (f / "3_toy").rename(f / "4_toy"), "train_data_dir"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_resumed_with_other_captions(name, repeated, tiny_model, tmp_path):
    def fingerprints(**keys):
        config = runs.make_config(tiny_model, repeated, tmp_path / "out", **keys)
        return read_inputs(config).fingerprints()

    change, key = CHANGES[name]
    before = fingerprints()
    assert fingerprints() == before
    off = fingerprints(caption_source="none")
    change(repeated)
    after = fingerprints()
    assert next(k for k in after if after[k] != before[k]) == key
    if key == "caption_source":
        assert fingerprints(caption_source="none") == off
    # Checkpoints of versions without captions say nothing of caption_source.
    assert before["template_file"] != off["template_file"]
    assert before["caption_source"] != off["caption_source"]


def test_sub_folders_that_count_are_told_and_listed(read, repeated, caplog):
    caplog.set_level(logging.INFO, "ti_flax")
    inputs = read()
    assert inputs.pictures.names == ("1_toy/1.png", "1_toy/2.png", "3_toy/0.png")
    assert inputs.listed.tolist() == [0, 1, 2, 2, 2]
    assert "sub-folders count several times: 1_toy 1, 3_toy 3" in caplog.text


def test_both_encoders_of_sdxl_read_the_same_captions(repeated, tmp_path):
    model = tmp_path / "sdxl"
    random_model.write_random_model(model, "tiny_sdxl")
    config = runs.make_config(
        model, repeated, tmp_path / "out", initializer_token="t", **RANDOM
    )
    prompts = read_inputs(config).prompts
    assert [*prompts.ids] == ["text_encoder", "text_encoder_2"]
    first, second = prompts.ids.values()
    assert first.shape == second.shape
    np.testing.assert_array_equal(prompts.spans[:, 1], [16, 16, 16])
    assert len(first) == 3 * 16 + 1
    # They pad otherwise; before the end they are the same.
    before_end = np.cumprod(first != first[-1, 1], axis=1).astype(bool)
    np.testing.assert_array_equal(first[before_end], second[before_end])
