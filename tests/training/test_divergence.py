"""Steps that are not finite, and rows that outgrow the vocabulary."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import slots

from ti_flax.formats import find
from ti_flax.models import base_model
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import world
from ti_flax.runtime import errors
from ti_flax.step import dispatch, train_step
from ti_flax.step.optimizer import Hold
from ti_flax.step.state import Metrics
from ti_flax.text.initial_rows import vocabulary_norms
from ti_flax.text.tokenizer import load_tokenizer
from ti_flax.training import divergence
from ti_flax.training import run as training_run

CAT = slots.Concept(seed=1, pictures=1, prompts=1, vectors=2)
DOG = slots.Concept(seed=2, pictures=1, prompts=1, vectors=2)
SHAPE = (2, 2, slots.WIDTH)


@pytest.fixture(scope="module")
def recipe():
    return slots.make_recipe()


def apply(recipe, state, bank, loss=(1.0, 1.0), grads=None):
    grads = np.ones(SHAPE, np.float32) if grads is None else grads
    return jax.jit(lambda *given: train_step.apply_gradients(*given, recipe))(
        state, jnp.asarray(loss), {"text_encoder": jnp.asarray(grads)}, bank
    )


def gradients_with(value):
    grads = np.ones(SHAPE, np.float32)
    grads[0, 1, 3] = value
    return {"grads": grads}


@pytest.mark.parametrize(
    "bad",
    [
        {"loss": (np.nan, 1.0)},
        {"loss": (np.inf, 1.0)},
        gradients_with(np.nan),
        gradients_with(-np.inf),
        # Finite, but Adam squares it, and the row would never move again.
        gradients_with(1e30),
    ],
    ids=["loss nan", "loss inf", "gradient nan", "gradient inf", "gradient huge"],
)
def test_a_step_that_is_not_finite_changes_nothing(recipe, bad):
    state, bank = slots.make_run(recipe, CAT, DOG)
    state, _ = apply(recipe, state, bank)
    after, metrics = apply(recipe, state, bank, **bad)
    sound, _ = apply(recipe, state, bank)
    trees = [(s.rows, s.opt_state) for s in (after, state, sound)]
    for new, old, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        # The concept beside it learns what it learns without.
        np.testing.assert_array_equal(new[1], other[1])
        assert not np.array_equal(new[1], old[1])
    np.testing.assert_array_equal(after.step, [2, 2])
    np.testing.assert_array_equal(after.skipped, [1, 0])
    np.testing.assert_array_equal(metrics.skipped, [True, False])


def test_a_skipped_step_is_none_of_the_schedule(recipe):
    state, bank = slots.make_run(
        recipe, CAT._replace(rates=(0.0, 1.0, 2.0)), DOG._replace(rates=(0.0, 3.0))
    )
    rates = []
    for loss in (1.0, np.nan, 1.0):
        state, metrics = apply(recipe, state, bank, (loss, 1.0))
        rates.append(np.asarray(metrics.learning_rate))
    np.testing.assert_array_equal(rates, [[0, 0], [1, 3], [1, 3]])
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 1]
    for count in counts:
        np.testing.assert_array_equal(count, [2, 3])


def test_a_slot_that_has_ended_skips_nothing(recipe):
    state, bank = slots.make_run(recipe, CAT._replace(steps=0), DOG)
    after, metrics = apply(recipe, state, bank, (np.nan, 1.0))
    np.testing.assert_array_equal(after.skipped, [0, 0])
    assert not metrics.skipped.any()


@pytest.mark.parametrize("kind", ["clip", "median", "initializer", "decay"])
def test_rows_are_held(recipe, kind):
    """Against the formulas, in float64, from where the step without a hold ends."""
    state, bank = slots.make_run(recipe, CAT, DOG)
    initial = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    norm = np.array([4.0, 3.0], np.float32)
    bank = bank._replace(
        initial={"text_encoder": jnp.asarray(initial)},
        norms={"text_encoder": jnp.asarray(norm)},
    )
    free, _ = apply(recipe, state, bank)
    held, metrics = apply(recipe._replace(hold=Hold(kind, 0.5)), state, bank)
    rows = np.asarray(free.rows["text_encoder"], np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    limits = norm.reshape(2, 1, 1)
    assert (lengths > limits).any() and (lengths < limits).any()
    expected = {
        "clip": rows * np.minimum(1, limits / lengths),
        "median": rows * limits / lengths,
        "initializer": rows
        * (np.linalg.norm(initial, axis=-1, keepdims=True) / lengths),
        "decay": rows - 1e-2 * 0.5 * (rows - initial),
    }[kind]
    ours = held.rows["text_encoder"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        metrics.row_norm, np.linalg.norm(expected, axis=-1), rtol=1e-5
    )


def test_a_row_of_zeros_is_not_lengthened(recipe):
    zeros = jnp.zeros((1, 4))
    held = Hold("median", 0.0)(zeros, zeros, jnp.float32(2), jnp.float32(1))
    np.testing.assert_array_equal(held, zeros)


def metrics_of(skipped, norms):
    """Metrics of a dispatch as the guard reads them: of slot 1, in longer buffers.

    The slot beside it, and what is behind the steps, is bad throughout.
    """
    count = len(skipped)
    empty = np.zeros((dispatch.MAX_STEPS_A_DISPATCH, 2), np.float32)
    was_skipped, row_norm = np.ones_like(empty, bool), np.full((*empty.shape, 2), 99.0)
    was_skipped[:count, 1] = skipped
    row_norm[:count, 1] = np.stack([norms, np.zeros(count)], axis=-1)
    known = {"skipped": was_skipped, "row_norm": row_norm}
    return Metrics(**dict.fromkeys(Metrics._fields, empty) | known), count


def test_a_row_that_outgrows_the_vocabulary_is_told_once(caplog):
    guard = divergence.DivergenceGuard(1, 10, limits=[2.0])
    guard.add(*metrics_of([0, 0, 0], [1.0, 2.0, 2.5]))
    guard.add(*metrics_of([0], [3.0]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "step 13: a vector of length 2.5" in record.getMessage()
    assert "hold_row_norm" in record.getMessage()


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [(1.9, 4.9, ""), (2.1, 1.0, "2.1 is longer"), (1.0, 5.1, "5.1 is longer")],
)
def test_rows_are_held_to_the_vocabulary_of_their_encoder(first, second, told, caplog):
    guard = divergence.DivergenceGuard(1, 0, limits=[2.0, 5.0])
    metrics, count = metrics_of([0], [0.0])
    metrics.row_norm[0, 1] = first, second
    guard.add(metrics, count)
    assert (told in caplog.text) if told else not caplog.records


def test_only_steps_in_a_row_end_a_run(caplog):
    guard = divergence.DivergenceGuard(1, 0, limits=[9.0])
    some = [1] * (divergence.MAX_SKIPPED - 1)
    for _ in range(3):
        guard.add(*metrics_of([*some, 0], [1.0] * (len(some) + 1)))
    assert not guard.diverged
    assert "step 1: loss or gradient is not finite" in caplog.text
    guard.add(*metrics_of(some[:4], [1.0] * 4))
    guard.add(*metrics_of([1] * (divergence.MAX_SKIPPED - 4), [1.0] * 6))
    assert guard.diverged


@pytest.mark.parametrize(
    ("norm", "told"), [(8.9, False), (9.000005, False), (9.001, True), (30.0, True)]
)
def test_a_row_that_is_clipped_to_the_limit_is_not_beyond_it(norm, told, caplog):
    guard = divergence.DivergenceGuard(1, 0, limits=[9.0])
    guard.add(*metrics_of([0], [norm]))
    assert ("longer than" in caplog.text) == told


@pytest.mark.parametrize("taken", range(1, 6))
def test_a_resumed_run_warns_of_what_the_whole_one_does(taken, caplog):
    """Of the same steps, with the same lengths."""
    norms, skipped = [8.0, 9.5, np.nan, 9.9, 8.5, 12.0], [0, 0, 1, 0, 0, 0]

    def told(guard, lines, first):
        caplog.clear()
        guard.tell_again(lines)
        guard.add(*metrics_of(skipped[first:], norms[first:]))
        return caplog.messages

    lines = [
        {
            "step": step,
            "row_norm": [None if np.isnan(norm) else norm],
            "skipped": bool(bad),
        }
        for step, (norm, bad) in enumerate(zip(norms, skipped, strict=True), start=1)
    ]
    whole = told(divergence.DivergenceGuard(1, 0, limits=[9.0]), [], 0)
    assert [message.partition(":")[0] for message in whole] == ["step 2", "step 3"]
    resumed = divergence.DivergenceGuard(1, taken, limits=[9.0])
    assert told(resumed, lines[:taken], taken) == whole


@pytest.mark.parametrize(
    "line", [{}, {"row_norm": 12.0}, {"row_norm": []}, {"row_norm": ["12", 12.0]}]
)
def test_lines_that_somebody_changed_are_passed_over(line, caplog):
    guard = divergence.DivergenceGuard(1, 2, limits=[9.0, 9.0])
    guard.tell_again([{"step": 1, **line}, {"step": 2, "row_norm": [12.0] * 2}])
    assert [message.partition(":")[0] for message in caplog.messages] == ["step 2"]


def test_the_lengths_of_a_vocabulary():
    """The median is that of trained rows, where a gap tells them from the others."""
    table = np.zeros((101, 3), np.float32)
    table[:, 1] = -np.arange(101)
    assert vocabulary_norms(table) == (50.0, 99.0)
    random = np.random.default_rng(0)

    def with_lengths(*groups):
        lengths = np.concatenate(
            [random.normal(mean, std, count) for count, mean, std in groups]
        )
        rows = random.normal(size=(len(lengths), 64))
        rows *= (lengths / np.linalg.norm(rows, axis=-1))[:, None]
        return vocabulary_norms(rows.astype(np.float32)), lengths

    (found, high), lengths = with_lengths((900, 0.22, 0.015), (100, 0.7, 0.1))
    assert found == pytest.approx(np.median(lengths[900:]), rel=1e-6)
    assert high == pytest.approx(np.percentile(lengths, 99), rel=1e-6)
    alone = [
        [(1000, 0.4, 0.03)],  # as CLIP's: one group
        [(1000, 0.4, 0.12)],  # as wide as can be without a gap
        [(995, 0.4, 0.03), (5, 1.0, 0.0)],  # some odd rows
        [(600, 0.4, 0.03), (400, 0.5, 0.03)],  # two groups, of about a length
        [(100, 0.2, 0.01), (900, 0.4, 0.03)],  # most are the long ones
    ]
    for groups in alone:
        (found, _), lengths = with_lengths(*groups)
        assert found == pytest.approx(np.median(np.abs(lengths)), rel=1e-6), groups


def test_the_words_of_the_quickstarts_model_are_its_trained_rows():
    model = base_model.open_model(str(settings.MODEL))
    [encoder] = model.family.text_encoders
    table = np.asarray(encoder.table(model.load(encoder.name)))
    lengths = np.linalg.norm(table, axis=-1)
    median, high = vocabulary_norms(table)
    assert high == np.percentile(lengths, 99)
    assert np.median(lengths) == pytest.approx(0.2187, abs=1e-4)
    assert median == pytest.approx(0.687, abs=1e-3)
    # What it was trained with: its names, and words of its captions.
    tokenizer = load_tokenizer(model.tokenizer(encoder), encoder.pieces)
    names = [*world.SPECIES_NOUNS, *world.STYLE_NOUNS]
    text = " ".join(["a photo of a in the style of on the", *names])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lengths[ids].min() > 1.5 * np.median(lengths)
    assert abs(np.median(lengths[ids]) - median) < 0.15


@pytest.fixture
def train(tiny_model, tmp_path, monkeypatch):
    """Runs the trainer without the networks; gradients may be poisoned at steps."""
    pictures = runs.draw_pictures(tmp_path / "pictures")
    runs.skip_networks(monkeypatch)
    sound = train_step.draw_batch

    def run(folder, bad_steps=(), **keys):
        def draw_batch(bank, number, *rest):
            bad = jnp.isin(number, jnp.array(list(bad_steps), jnp.int32))
            poison = jnp.where(bad, jnp.nan, 0.0)[:, None, None, None, None]
            batch = sound(bank, number, *rest)
            return batch._replace(noise=batch.noise + poison)

        monkeypatch.setattr(train_step, "draw_batch", draw_batch)
        config = runs.make_config(tiny_model, pictures, tmp_path / folder, **keys)
        (learned,) = training_run.train_concepts(config, progress=False)
        return learned.rows["text_encoder"]

    run.folder = tmp_path
    return run


def test_a_run_goes_past_a_step_that_is_not_finite(train):
    train("poisoned", bad_steps=[2])
    lines = runs.content(train.folder / "poisoned")["metrics.jsonl"]
    assert [line["skipped"] for line in lines] == [False, False, True] + 3 * [False]
    assert lines[2]["grad_norm"] is None
    assert lines[2]["row_norm"] == lines[1]["row_norm"] != lines[3]["row_norm"]


def test_a_run_that_diverges_ends_with_its_last_good_rows(train):
    two = train("two", max_train_steps=2)
    with pytest.raises(errors.UserError, match=r"in \d+ steps in a row") as e:
        # Checkpoints at other steps would hide what is exported at the end.
        train("run", range(2, 99), max_train_steps=99, checkpointing_steps=99)
    assert "lower learning_rate" in str(e.value) and "\n" not in str(e.value)
    kept = find.load_embedding(train.folder / "run").rows["text_encoder"]
    np.testing.assert_array_equal(kept, two)


def test_the_trainer_holds_rows_as_long_as_words(train, tiny_model, caplog):
    model = base_model.open_model(str(tiny_model))
    [encoder] = model.family.text_encoders
    table = np.asarray(encoder.table(model.load(encoder.name)))
    lengths = np.linalg.norm(table, axis=-1)
    grown = np.linalg.norm(train("free", learning_rate=1.0))
    assert grown > 2 * np.percentile(lengths, 99)
    assert "longer than 99 % of the vocabulary" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, logger="ti_flax")
    tokenizer = load_tokenizer(model.tokenizer(encoder), encoder.pieces)
    toy, *_ = tokenizer("toy", add_special_tokens=False)["input_ids"]
    expected = {
        "clip": np.percentile(lengths, 99),
        "median": np.median(lengths),
        "initializer": lengths[toy],
    }
    for kind, length in expected.items():
        held = np.linalg.norm(train(kind, learning_rate=1.0, hold_row_norm=kind))
        assert held == pytest.approx(length, rel=1e-5)
        assert f"hold_row_norm {kind}: vectors are " in caplog.text
        assert f" {length:.3g}\n" in caplog.text
    # Rows at the limit are not beyond it, however their length is rounded.
    assert "longer than" not in caplog.text
    # All of the way back at each step, after it: the rows end where they began.
    keys = {"learning_rate": 1.0, "hold_row_norm": "decay", "row_decay": 1.0}
    back = train("decay", **keys)
    assert np.linalg.norm(back) < np.percentile(lengths, 99.9)
