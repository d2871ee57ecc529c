"""Processes that share a list: each trains its part, and one page has them all."""

import json

import many
import numpy as np
import pytest
import runs

from ti_flax.formats import find
from ti_flax.reports import index_page
from ti_flax.runtime import hosts
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.training import job, ledger
from ti_flax.training.many import train_many

NAMES = [*many.LIST]


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return many.write_list(tmp_path_factory.mktemp("list"))


@pytest.fixture
def train(tiny_model, path, tmp_path):
    """Trains the list or a part of it into the folder that is returned."""

    def train(**given):
        folder = tmp_path / "q"
        asked = many.load(tiny_model, path, folder, slots=2, **given)
        train_many(asked, progress=False)
        return folder

    return train


def rows(folder):
    return find.load_embedding(folder).rows["text_encoder"]


def states(page):
    """Concept -> state, as the page's table has it."""
    return {entry.name: entry.state for entry in page}


@pytest.fixture
def pages(monkeypatch):
    """The entries of each page that is written, and the words an hour."""
    written = []
    write = index_page.IndexPage.write

    def keep(self, entries, words_per_hour):
        written.append((entries, words_per_hour))
        write(self, entries, words_per_hour)

    monkeypatch.setattr(index_page.IndexPage, "write", keep)
    return written


def test_parts_share_a_folder_and_a_page(train, pages):
    folder = train(part="1/2")
    own = NAMES[1::2]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {*own}
    entries, speed = pages[-1]
    assert states(entries) == {
        name: "done" if name in own else "waiting" for name in NAMES
    }
    assert speed > 0
    train(part="0/2")
    entries, _ = pages[-1]
    assert states(entries) == dict.fromkeys(NAMES, "done")
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "concepts-0-of-2.json",
        "concepts-1-of-2.json",
    ]
    before = {name: runs.content(folder / name) for name in NAMES}
    # The whole list, or another split of it, has nothing left to do.
    for given in ({}, {"part": "2/3"}):
        train(**given)
        assert {name: runs.content(folder / name) for name in NAMES} == before


def test_a_part_teaches_what_the_whole_list_does(train, tiny_model, path, tmp_path):
    folder = train(part="2/4")
    asked = many.load(tiny_model, path, tmp_path / "whole", slots=2)
    train_many(asked, progress=False)
    [name] = NAMES[2::4]
    np.testing.assert_allclose(
        rows(folder / name), rows(tmp_path / "whole" / name), rtol=0, atol=2e-5
    )


def test_a_part_without_concepts_has_nothing_to_do(train):
    folder = train(part="7/9")
    assert not any(path.is_dir() for path in folder.iterdir())


def test_the_page_has_what_others_wrote_while_it_was_made(
    tiny_model, path, tmp_path, monkeypatch
):
    """The other process ends between this one's reading and its writing."""
    ours, theirs = (
        ledger.Ledger(many.load(tiny_model, path, tmp_path / "q", part=f"{i}/2"))
        for i in (0, 1)
    )
    (tmp_path / "q").mkdir()
    concepts = many.load(tiny_model, path, tmp_path / "q").concepts
    theirs.begin(concepts[1], 0)
    written, write = [], index_page.IndexPage.write

    def other_first(self, entries, words_per_hour):
        written.append(states(entries))
        if len(written) == 1:
            theirs.done(concepts[1], 6, "")
            monkeypatch.setattr(index_page.IndexPage, "write", other_first)
        write(self, entries, words_per_hour)

    monkeypatch.setattr(index_page.IndexPage, "write", other_first)
    ours.close()
    assert written[0][NAMES[1]] == "training"
    assert written[-1][NAMES[1]] == "done"


def test_concepts_that_fail_are_counted_once(tiny_model, tmp_path):
    listed = many.LIST | {"dog": {"max_train_steps": "many"}}
    path = many.write_list(tmp_path, listed)
    folder = tmp_path / "q"
    given = {"slots": 2, "skip_bad_concepts": True}
    with pytest.raises(UserError, match="1 of 3 concepts failed: dog;"):
        train_many(many.load(tiny_model, path, folder, part="0/2", **given), False)
    train_many(many.load(tiny_model, path, folder, part="1/2", **given), False)
    assert "dog" in (folder / "index.html").read_text()


def test_a_part_that_was_stopped_goes_on(train, monkeypatch):
    with runs.stopped_after(2, monkeypatch), pytest.raises(Stopped, match="0 of 3"):
        train(part="0/2")
    folder = train(part="0/2")
    lines = json.loads((folder / "concepts-0-of-2.json").read_text())["concepts"]
    assert {line["state"] for line in lines.values()} == {"done"}


@pytest.mark.parametrize(
    ("machine", "part", "told"),
    [
        ({"SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "2"}, None, "--part I/N"),
        ({"SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "2"}, "0/2", None),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, None, None),
    ],
)
def test_processes_that_share_a_list_have_parts(
    machine, part, told, tiny_model, path, tmp_path, monkeypatch
):
    for name, value in machine.items():
        monkeypatch.setenv(name, value)
    trained = []
    monkeypatch.setattr(job.many, "train_many", trained.append)
    given = {} if part is None else {"part": part}
    asked = many.load(tiny_model, path, tmp_path / "q", **given)
    if told is None:
        job.train(asked)
        assert trained == [asked]
    else:
        with pytest.raises(UserError, match=told):
            job.train(asked)


def test_hosts_of_one_tpu_slice_cannot_have_parts(
    tiny_model, path, tmp_path, monkeypatch
):
    monkeypatch.setattr(hosts, "has_tpu", lambda: True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    asked = many.load(tiny_model, path, tmp_path / "q", part="0/2")
    with pytest.raises(UserError, match="slice of one host"):
        job.train(asked)
