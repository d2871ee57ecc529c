"""Prompt templates: the built-in lists and the user's own file."""

import re

import pytest

from ti_flax.runtime.errors import UserError
from ti_flax.text import templates


@pytest.mark.parametrize(
    ("learnable_property", "fewest"), [("object", 27), ("style", 19)]
)
def test_built_in_templates_are_distinct_sentences_with_one_slot(
    learnable_property, fewest
):
    lines = templates.prompt_templates(learnable_property)
    assert len(lines) >= fewest
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert line.count("{}") == 1
        assert re.fullmatch(r"[a-z{}]+(?:[ -][a-z{}]+)*", line), line


def test_object_templates_cover_what_the_field_varies():
    text = " ".join(templates.prompt_templates("object"))
    nuisances = (
        "a {}|the {}|my {}|one {}|good|bad|cropped|close-up|bright|dark|clean|dirty"
        "|weird|cool|nice|small|large|jpeg corrupted|photo|rendering|depiction"
    )
    assert [word for word in nuisances.split("|") if word not in text] == []


def test_style_templates_all_speak_of_a_style():
    lines = templates.prompt_templates("style")
    assert all(line.endswith(" in the style of {}") for line in lines)


def test_template_file_skips_blank_lines_and_comments(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_bytes(
        "\ufeffa dessin of {}, 猫\r\n\r\n  # not {} this\r\n  {} {x}  \r\n".encode()
    )
    lines = templates.prompt_templates("style", path)
    assert lines == ["a dessin of {}, 猫", "{} {x}"]


def test_templates_of_automatic1111_are_read_as_they_are(tmp_path):
    path = tmp_path / "subject_filewords.txt"
    path.write_text("a photo of a [name], [filewords]\n[filewords]\nthe [name]\n")
    lines = templates.prompt_templates("object", path)
    assert lines == ["a photo of a {}, [filewords]", "[filewords]", "the {}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a photo of {}\n\n# {}\n{} and {}\n", r"line 4: .* 2 times"),
        (b"a photo of {}\na photo of a cat\n", r"line 2: .* 0 times"),
        (b"[name]\n{} as [name]\n", r"line 2: .* 2 times"),
        (b"[filewords] {}\n[filewords] {} {}\n", r"line 2: .* 2 times"),
        (b"# nothing\n\n", "holds no template"),
        ("a café {}".encode("latin-1"), "not UTF-8"),
    ],
)
def test_bad_template_file_is_refused_by_line(tmp_path, content, message):
    path = tmp_path / "templates.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        templates.prompt_templates("object", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_template_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        templates.prompt_templates("object", tmp_path / "none.txt")
