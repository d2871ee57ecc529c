"""Several starts: the run of the best is the run of its word alone, to the bit."""

import json
import logging
import re

import many
import numpy as np
import pytest
import runs
import slots

from ti_flax.formats import find
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.training import run as training_run
from ti_flax.training import starts
from ti_flax.training.inputs import Start
from ti_flax.training.many import train_many

WORDS = ("t", "u", "v")
RACE = {
    "initializer_token": WORDS[0],
    "start_tokens": WORDS[1:],
    "num_starts": 3,
    "start_steps": 3,
    "validation_steps": 3,
    "num_vectors": 2,
    "learning_rate": 0.05,
}


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture
def learn(tiny_model, pictures, tmp_path, caplog):
    """Runs into a folder; returns it and what was told of its starts."""

    def learn(name, **given):
        folder = tmp_path / name
        config = runs.make_config(tiny_model, pictures, folder, **given)
        caplog.clear()
        with caplog.at_level(logging.INFO, "ti_flax"):
            training_run.train_concepts(config, progress=False)
        return folder, told(caplog)

    return learn


def told(caplog):
    """Each start that the log tells, with its fixed loss, the best first."""
    [lines] = [m for m in caplog.messages if m.startswith("starts")] or [""]
    return [(w, float(loss)) for w, loss in re.findall(r"([^ ,]+) (\d\.\d+)", lines)]


def alone(word):
    """The keys of a plain run from a word."""
    plain = {k: v for k, v in RACE.items() if not k.startswith(("start", "num_st"))}
    return plain | {"initializer_token": word}


def comparable(folder):
    """All but what says that there was a race."""
    kept = runs.content(folder)
    return {
        name: kept[name]
        for name in kept
        if name in ("metrics.jsonl", "validation.jsonl") or name.startswith("samples/")
    }


def rows_of(folder):
    return find.load_embedding(folder).rows["text_encoder"]


def losses_at(folder, step):
    lines = (folder / "validation.jsonl").read_text().splitlines()
    return {line["step"]: line["fixed_loss"] for line in map(json.loads, lines)}[step]


def test_the_best_start_learns_as_a_run_of_its_word(learn):
    raced, ranked = learn("raced", **RACE)
    plain = {word: learn(word, **alone(word))[0] for word in WORDS}
    expected = {word: losses_at(plain[word], 3) for word in WORDS}
    assert dict(ranked) == pytest.approx(expected, abs=6e-5)
    best = min(expected, key=expected.get)
    # Otherwise the race could not be told from a run without.
    assert ranked[0][0] == best != WORDS[0]
    np.testing.assert_array_equal(rows_of(raced), rows_of(plain[best]))
    assert comparable(raced) == comparable(plain[best])


def test_a_race_is_in_the_files_that_tell_how_rows_came_about(learn):
    raced, ranked = learn("raced", **RACE)
    provenance = find.load_embedding(raced).provenance
    assert provenance["start"] == ranked[0][0]
    assert json.loads(provenance["settings"])["num_starts"] == 3
    plain, none = learn("plain", **alone("t"))
    assert not none and "start" not in find.load_embedding(plain).provenance


def test_a_run_that_goes_on_takes_the_start_of_its_checkpoint(learn, monkeypatch):
    whole, _ = learn("whole", **RACE)
    with runs.stopped_after(4, monkeypatch), pytest.raises(Stopped):
        learn("parts", **RACE)

    def no_race(*arguments):
        raise AssertionError("a second race")

    monkeypatch.setattr(starts, "Race", no_race)
    parts, _ = learn("parts", **RACE, resume_from_checkpoint="latest")
    assert runs.without_looks(runs.content(parts)) == runs.without_looks(
        runs.content(whole)
    )


def test_words_near_to_those_given_are_tried_for_their_loss(learn, monkeypatch):
    """Without steps, the loss of each word is that of its row."""
    given = RACE | {"start_tokens": (), "num_starts": 4, "start_steps": 1}
    _, ranked = learn("near", **given)
    found = {word for word, _ in ranked}
    assert len(found) == 4 and WORDS[0] in found
    before = {
        word: losses_at(learn(f"of {word}", **alone(word), max_train_steps=3)[0], 0)
        for word in sorted(found | {"a", "k", "z"})
    }
    near = [word for word in before if word != WORDS[0]]
    # Three letters that were not chosen are no better than those that were.
    worst = max(before[word] for word in found - {WORDS[0]})
    assert all(before[word] >= worst for word in set(near) - found)


def test_the_length_that_is_told_is_the_winners(learn, caplog):
    raced, ranked = learn("held", **RACE, hold_row_norm="initializer")
    assert ranked[0][0] != WORDS[0]
    [line] = [m for m in caplog.messages if m.startswith("hold_row_norm")]
    found = [float(norm) for norm in line.partition("held at ")[2].split(", ")]
    lengths = np.linalg.norm(rows_of(raced), axis=-1)
    np.testing.assert_allclose(found, lengths, rtol=5e-3)  # of three digits


def test_without_a_word_starts_are_drawn_at_random(learn):
    given = RACE | {"initializer_token": None, "start_tokens": (), "seed": 5}
    raced, ranked = learn("random", **given)
    assert sorted(word for word, _ in ranked) == ["5", "6", "7"]
    start = find.load_embedding(raced).provenance["start"]
    assert start == f"random {ranked[0][0]}"


def test_a_start_that_diverges_is_never_the_best(tiny_model, pictures, tmp_path):
    config = runs.make_config(tiny_model, pictures, tmp_path)
    slot = slots.make_slot(slots.Concept(seed=1, pictures=1, prompts=1, vectors=1))
    losses = {"t": float("nan"), "u": 0.5, "v": float("inf"), "w": 0.5}
    race = starts.Race(config, [Start(word, 0) for word in losses], slot, lambda _: {})
    for loss in losses.values():
        race.next()
        race.note(loss)
    assert starts.tell(race) == Start("u", 0)


def test_concepts_in_slots_race_as_alone(tiny_model, tmp_path):
    own = {"num_starts": 3, "start_steps": 2, "validation_steps": 3}
    listed = {
        "cat": {"pictures": 2, **own, "start_tokens": ["u", "v"]},
        "dog": {"pictures": 3, "max_train_steps": 4},
        "bird": {"pictures": 1, **own, "num_vectors": 2, "start_tokens": ["a"]},
    }
    for each in listed.values():
        each["initializer_token"] = "t"
    path = many.write_list(tmp_path, listed)
    train_many(many.load(tiny_model, path, tmp_path / "q", slots=2), progress=False)
    asked = many.load(tiny_model, path, tmp_path / "alone")
    for concept in asked.concepts:
        training_run.train_concepts(concept.config, progress=False)
        ours, theirs = (tmp_path / f / concept.name for f in ("q", "alone"))
        np.testing.assert_allclose(rows_of(ours), rows_of(theirs), rtol=0, atol=2e-5)
        found = [find.load_embedding(f).provenance.get("start") for f in (ours, theirs)]
        assert found[0] == found[1]
        assert (found[0] is None) == (concept.name == "dog")


def test_a_queue_that_is_stopped_in_a_race_goes_on(tiny_model, tmp_path, monkeypatch):
    listed = {
        "cat": {"initializer_token": "t", "num_starts": 2, "start_steps": 2},
        "dog": {"max_train_steps": 4},
    }
    path = many.write_list(tmp_path, listed)

    def train(name):
        asked = many.load(tiny_model, path, tmp_path / name, slots=2)
        train_many(asked, progress=False)
        return tmp_path / name

    whole = train("whole")
    with runs.stopped_after(2, monkeypatch), pytest.raises(Stopped):
        train("parts")  # "dog" checkpoints while "cat" races
    ledger = json.loads((tmp_path / "parts" / "concepts.json").read_text())
    assert "waiting" in json.dumps(ledger)
    parts = train("parts")
    for name in listed:
        np.testing.assert_array_equal(rows_of(parts / name), rows_of(whole / name))


@pytest.mark.parametrize("raced", [False, True])
def test_a_short_start_is_its_word_made_short(raced, learn, tiny_model):
    """A rate of almost nothing leaves the rows where they start."""
    still = {"learning_rate": 1e-12, "max_train_steps": 1, "validation_steps": 1}
    given = RACE | {"start_steps": 1} if raced else alone(WORDS[0])
    whole, short = (
        learn(f"times {scale}", **given | still, initializer_scale=scale)
        for scale in (1.0, 0.25)
    )
    words = {word for word, _ in whole[1]}
    assert words == {word for word, _ in short[1]} == ({*WORDS} if raced else set())
    starts_of = [
        json.loads(find.load_embedding(folder).provenance["settings"])
        for folder, _ in (whole, short)
    ]
    assert [each["initializer_scale"] for each in starts_of] == [1.0, 0.25]
    if not raced:
        np.testing.assert_allclose(rows_of(short[0]), rows_of(whole[0]) / 4, atol=1e-9)
        return
    given = alone(short[1][0][0]) | still
    folder, _ = learn("alone", **given, initializer_scale=0.25)
    np.testing.assert_array_equal(rows_of(short[0]), rows_of(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"initializer_scale": 0}, "initializer_scale"),
        (
            {
                "initializer_token": None,
                "initializer_embedding": "word.bin",
                "start_tokens": (),
                "num_starts": 1,
                "initializer_scale": 0.5,
            },
            "expected initializer_scale 1 with initializer_embedding, found 0.5",
        ),
        ({"start_tokens": ("u",)}, "expected num_starts >= 2"),
        ({"num_starts": 2, "initializer_token": None, "start_tokens": ("u",)}, "first"),
        ({"num_starts": 0}, "num_starts"),
        ({"start_steps": 0, "num_starts": 2}, "start_steps"),
    ],
)
def test_what_makes_no_sense_is_told(given, message, tiny_model, pictures, tmp_path):
    with pytest.raises((UserError, ValueError), match=message):
        runs.make_config(tiny_model, pictures, tmp_path, **given)
