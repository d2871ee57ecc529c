"""What other libraries say, in one line of ours."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ti_flax.runtime import errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such key"), "no such key"),
        (ValueError("404 Error.\n\n\tNot found:  x\r\n"), "404 Error. Not found: x"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (KeyError("unet"), "'unet'"),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
        (ValueError("\x1b]0;title\x07\x1b[31mred"), "\\x1b]0;title\\x07\\x1b[31mred"),
        (ValueError("back\b\x00\x7f\x9b1m"), "back\\x08\\x00\\x7f\\x9b1m"),
        (ValueError("gpj.\u202eexe \u200b"), "gpj.\\u202eexe \\u200b"),
        (ValueError("half \ud83d"), "half \\ud83d"),
        (ValueError("Straße \u2028 日本語 🐈"), "Straße 日本語 🐈"),
        ("told\nas text", "told as text"),
    ],
)
def test_another_librarys_error_is_quoted_on_one_line(error, line):
    assert errors.one_line(error) == line


@given(st.text(st.characters(exclude_categories=()), max_size=800))
def test_any_text_is_one_bounded_line_that_a_terminal_shows(text):
    line = errors.one_line(text)
    assert 0 < len(line) <= 320
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    # Short text that was fit to print stands there whole.
    if text.isprintable() and text == " ".join(text.split()) and 0 < len(text) <= 320:
        assert line == text


def test_a_long_text_says_that_it_was_cut():
    line = errors.one_line(ValueError("many words " * 1000))
    assert len(line) == 320 and line.endswith("...")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (errors.UserError("expected this"), 2, "error: expected this"),
        (errors.UserError("a\x1b[31m\nb"), 2, r"error: a\x1b[31m\nb"),
        (errors.Stopped("2 of 6 steps"), os.EX_TEMPFAIL, "stopped: 2 of 6 steps"),
    ],
)
def test_a_door_ends_in_one_line_and_a_code(raised, code, line, capsys):
    def main():
        # Libraries catch Exception and go on: a stop is none, as it comes anywhere.
        try:
            raise raised
        except Exception:
            assert isinstance(raised, errors.UserError)
            raise

    with pytest.raises(SystemExit) as ended:
        errors.run(main)
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines() == [line]
