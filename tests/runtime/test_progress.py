"""Progress: a bar where a line can be written over, whole lines where it cannot."""

import io
import re
import sys

import pytest

from ti_flax.runtime.progress import Bar


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def work(clock: Clock, steps: int, seconds: float) -> None:
    """So many steps, each of so many seconds."""
    with Bar(total=steps, desc="training", unit="step") as bar:
        for number in range(steps):
            clock.now += seconds
            bar.set_postfix_str(f"loss {number}", refresh=False)
            bar.update(1)


def run(
    monkeypatch, clock: Clock, file: io.StringIO, steps: int, seconds: float
) -> str:
    monkeypatch.setattr(sys, "stderr", file)
    work(clock, steps, seconds)
    return file.getvalue()


@pytest.mark.parametrize(
    ("steps", "seconds", "lines"),
    # Every 30 s, and one where the work ends.
    [(20, 1, 0), (29, 1, 0), (100, 1, 4), (10, 29, 5), (3, 100, 3), (1000, 0.1, 4)],
)
def test_a_file_has_a_line_every_half_minute(monkeypatch, clock, steps, seconds, lines):
    said = run(monkeypatch, clock, io.StringIO(), steps, seconds)
    assert "\r" not in said and "\n\n" not in said
    told = said.splitlines()
    assert len(told) == lines
    counts = [int(re.match(r"training: (\d+) of ", line)[1]) for line in told]
    assert counts == sorted(counts) and counts[-1:] in ([], [steps])
    for line in told:
        assert re.search(r" steps in [0-9:]+, [0-9:]+ left, loss \d+$", line), line


def test_a_line_says_how_far_the_work_is(monkeypatch, clock):
    first, *_ = run(monkeypatch, clock, io.StringIO(), 120, 1).splitlines()
    assert first == "training: 30 of 120 steps in 00:30, 01:30 left, loss 29"


def test_a_terminal_has_a_bar(monkeypatch, clock):
    said = run(monkeypatch, clock, Terminal(), 5, 1)
    assert said.count("\r") >= 5 and said.count("\n") == 1
    assert "5/5" in said


def test_a_notebook_has_a_bar(monkeypatch, clock):
    """In `ipykernel.iostream.OutStream`, which says that it is no terminal."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    assert "5/5" in run(monkeypatch, clock, stream(), 5, 1)


def test_a_file_has_lines_whatever_is_imported(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert "\r" not in run(monkeypatch, clock, io.StringIO(), 100, 1)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("first", [1, 7])
def test_the_time_before_the_first_update_does_not_count(
    monkeypatch, clock, stream, first
):
    file = stream()
    monkeypatch.setattr(sys, "stderr", file)
    with Bar(total=100, desc="training", unit="step", starts_with_first=True) as bar:
        clock.now += 300  # a compiler
        assert not file.getvalue()
        bar.update(first)
        for _ in range(60):
            clock.now += 1
            bar.update(1)
    last = re.split(r"[\r\n]+", file.getvalue().strip())[-1]
    told = re.search(r"(\d+)(?: of |/)100.*?(\d+:\d+).*?(\d+:\d+)", last)
    # One a second from the first update on.
    assert told.groups() == (str(first + 60), "01:00", f"00:{100 - first - 60}")


def test_a_bar_of_one_update_is_shown_and_ended(monkeypatch, clock):
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    with Bar(total=5, desc="training", unit="step", starts_with_first=True) as bar:
        bar.update(5)
    assert "5/5" in file.getvalue() and file.getvalue().endswith("\n")


def test_a_silent_bar_stays_silent(monkeypatch, capsys):
    with Bar(total=2, disable=True, starts_with_first=True) as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")
