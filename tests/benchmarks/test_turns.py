"""Both sides of a benchmark: side by side in memory, or one after the other."""

import os
from pathlib import Path

import pytest

import ti_flax
from ti_flax.benchmarks import turns
from ti_flax.benchmarks.keys import StepKeys

OURS, PYTORCH = turns.OURS, turns.PYTORCH


@pytest.fixture
def heard(monkeypatch):
    """What workers were asked, in order; each answers with the number of its turn."""
    events = []

    class Worker:
        def __init__(self, name, python, module, keys):
            self.name, self.taken = name, 0
            events.append(("start", name))

        def hear(self):
            return {"module": self.name}

        def ask(self, go_on):
            events.append(("turn" if go_on else "peak", self.name))
            self.taken += go_on
            return self.taken if go_on else 100 * self.taken

        def end(self):
            events.append(("end", self.name))

    monkeypatch.setattr(turns, "Worker", Worker)
    return events


@pytest.mark.parametrize("together", [True, False])
def test_every_side_takes_its_turns(together, heard):
    keys = StepKeys(pytorch="same", repeats=2, together=together)
    measured = turns.measure(keys, "ours", "pytorchs")
    # In the order of the table's columns.
    assert list(measured.facts) == list(measured.answers) == [OURS, PYTORCH]
    assert measured.answers == {OURS: [1, 2], PYTORCH: [1, 2]}
    assert {f["peak_bytes"] for f in measured.facts.values()} == {200}
    turn = [name for event, name in heard if event == "turn"]
    there, most = set(), 0
    for event, name in heard:
        there = there | {name} if event == "start" else there
        there = there - {name} if event == "end" else there
        most = max(most, len(there))
    assert not there
    if together:
        assert turn == [OURS, PYTORCH] * 2 and most == 2
    else:
        assert turn == [PYTORCH] * 2 + [OURS] * 2 and most == 1


def test_our_side_alone(heard):
    measured = turns.measure(StepKeys(repeats=3), "ours", "pytorchs")
    assert measured.answers == {OURS: [1, 2, 3]}
    assert [event for event, _ in heard] == ["start", *["turn"] * 3, "peak", "end"]


@pytest.mark.parametrize("theirs", [None, "", "/site", f"/a{os.pathsep}/b"])
def test_a_side_finds_these_sources_first_and_then_what_the_user_has(theirs):
    given = {"HOME": "/here"} | ({} if theirs is None else {"PYTHONPATH": theirs})
    found = turns.with_sources(given)
    expected = [str(Path(ti_flax.__file__).parents[1]), *([theirs] if theirs else [])]
    assert found == {"HOME": "/here", "PYTHONPATH": os.pathsep.join(expected)}
