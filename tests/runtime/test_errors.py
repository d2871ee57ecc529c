"""What other libraries say, in one line of ours."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

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


PACKAGE = Path(errors.__file__).parents[1]
PRINTING = {
    "the list": ["ti_flax"],
    "help": ["ti_flax.train", "--help"],
    "a configuration": [
        *("ti_flax.train", "--train_data_dir=a", "--placeholder_token=<a>"),
        *("--pretrained_model_name_or_path=b", "--print_config"),
    ],
    "faults": ["ti_flax.data", str(PACKAGE / "quickstart" / "pictures"), "--help"],
    "a model": ["ti_flax.inspect", "learned_embeds.safetensors"],
}


@pytest.mark.parametrize("kind", PRINTING)
def test_a_reader_that_leaves_ends_a_command_in_silence(kind, tmp_path):
    """As `head` does."""
    import numpy as np
    import safetensors.numpy

    rows = {"<a>": np.ones((1, 768), np.float32)}
    safetensors.numpy.save_file(rows, tmp_path / "learned_embeds.safetensors")
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", *PRINTING[kind]],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    # argparse has no fault of its own where nobody reads its help.
    code = 0 if "--help" in PRINTING[kind] else errors.UNREAD_EXIT_CODE
    assert (ran.stderr, ran.returncode) == ("", code)


def test_the_pipe_of_another_is_a_fault():
    def main():
        raise BrokenPipeError("of a library")

    with pytest.raises(BrokenPipeError, match="of a library"):
        errors.run(main)
