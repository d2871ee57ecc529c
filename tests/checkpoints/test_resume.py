"""A run that is ended at any moment resumes as if it had not been."""

import json
import os
import signal

import jax
import numpy as np
import pytest
import runs
import slots

from ti_flax.checkpoints import identity, orbax_folder, store
from ti_flax.formats import find, registry
from ti_flax.runtime import errors, sharding
from ti_flax.training import run as training_run
from ti_flax.training import seat, validation


@pytest.fixture
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture
def settings(tiny_model, pictures, tmp_path):
    """Makes the configuration of a run in this test's folder."""

    def make(folder="run", **keys):
        return runs.make_config(tiny_model, pictures, tmp_path / folder, **keys)

    return make


@pytest.fixture(scope="module")
def whole(tiny_model, pictures, tmp_path_factory):
    """The folder of a run, without the networks, that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        runs.skip_networks(patch)
        training_run.train_concepts(
            runs.make_config(tiny_model, pictures, folder), False
        )
    return folder


def go_on(settings, **keys):
    """The same command again; what the run learned."""
    config = settings(resume_from_checkpoint="latest", **keys)
    return training_run.train_concepts(config, progress=False)[0]


without_networks = pytest.mark.usefixtures("no_networks")


@without_networks
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(
    kind, settings, whole, monkeypatch
):
    handler = signal.getsignal(kind)
    with (
        runs.stopped_after(2, monkeypatch, kind),
        pytest.raises(errors.Stopped, match=kind.name),
    ):
        go_on(settings)
    assert signal.getsignal(kind) is handler
    folder = settings().output_dir
    assert runs.checkpoints(folder) == [2]
    assert runs.content(folder) != runs.content(whole)
    go_on(settings)
    assert runs.content(folder) == runs.content(whole)
    assert runs.checkpoints(folder) == [2, 4, 6]


@without_networks
def test_a_signal_between_checkpoints_saves_that_step(settings, whole, monkeypatch):
    # The first dispatch has one step; it is over when the signal is seen.
    with (
        runs.stopped_after(1, monkeypatch),
        pytest.raises(errors.Stopped, match="1 of 6 steps"),
    ):
        training_run.train_concepts(settings(checkpointing_steps=1), progress=False)
    folder = settings().output_dir
    assert runs.checkpoints(folder) == [1]
    go_on(settings)
    assert runs.content(folder) == runs.content(whole)


@without_networks
def test_a_run_that_ends_in_a_validation_repeats_it(settings, whole, monkeypatch):
    seen = []

    def validate(done, state):
        seen.append(done)
        if seen == [0, 3, 6]:
            raise MemoryError

    monkeypatch.setattr(validation, "compile_validation", lambda *run: validate)
    with pytest.raises(MemoryError):
        training_run.train_concepts(settings(validation_steps=3), progress=False)
    folder = settings().output_dir
    assert runs.checkpoints(folder) == [2, 4]
    go_on(settings, validation_steps=3)
    assert seen == [0, 3, 6, 6]
    # This validation writes no line; the tests of signals compare those.
    left, expected = runs.content(folder), runs.content(whole)
    assert runs.without_looks(left) == runs.without_looks(expected)


@without_networks
def test_what_was_learned_is_exported_at_each_checkpoint(
    settings, monkeypatch, tiny_model
):
    with runs.stopped_after(2, monkeypatch), pytest.raises(errors.Stopped):
        training_run.train_concepts(settings(), progress=False)
    early = find.load_embedding(settings().output_dir)
    two_steps = settings("two", max_train_steps=2)
    (learned,) = training_run.train_concepts(two_steps, progress=False)
    np.testing.assert_array_equal(
        early.rows["text_encoder"], learned.rows["text_encoder"]
    )


@without_networks
def test_a_finished_run_trains_nothing_more_and_exports(settings, whole, monkeypatch):
    training_run.train_concepts(settings(), progress=False)
    folder = settings().output_dir
    os.remove(folder / find.BIN_NAME)
    monkeypatch.setattr(seat.Event, "next_after", None)  # no step is taken
    go_on(settings)
    assert runs.content(folder) == runs.content(whole)
    learned = go_on(settings, max_train_steps=3)
    np.testing.assert_array_equal(
        learned.rows["text_encoder"], find.load_embedding(whole).rows["text_encoder"]
    )
    metrics = (runs.content(f)["metrics.jsonl"] for f in (folder, whole))
    assert next(metrics) == next(metrics)


@without_networks
def test_raising_max_train_steps_goes_on_exactly(settings, whole):
    training_run.train_concepts(settings(max_train_steps=3), progress=False)
    folder = settings().output_dir
    go_on(settings)
    left, expected = runs.content(folder), runs.content(whole)
    # The first run ended in a validation that the whole one did not make.
    lines = left.pop("validation.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 6]
    assert [lines[0], lines[2]] == expected.pop("validation.jsonl").splitlines()
    left.pop("words/toy-000003.safetensors")
    assert left == expected


@without_networks
def test_a_schedule_with_an_end_is_warned_of_and_followed(settings, caplog):
    cosine = {"lr_scheduler": "cosine"}
    training_run.train_concepts(settings(max_train_steps=2, **cosine), progress=False)
    go_on(settings, **cosine)
    assert "2 steps were taken on the way to 2, from here it leads to 6" in caplog.text
    rates = [
        line["learning_rate"]
        for line in runs.content(settings().output_dir)["metrics.jsonl"]
    ]
    for length, steps in ((2, [0, 1]), (6, [2, 3, 4, 5])):
        expected = [2e-3 * (1 + np.cos(np.pi * n / length)) / 2 for n in steps]
        np.testing.assert_allclose([rates[n] for n in steps], expected, rtol=1e-5)


@without_networks
def test_options_of_a_step_go_on_to_the_bit(settings, monkeypatch):
    """The state has the first directions, and no moments of Adam."""
    options = {
        "optimizer": "directional",
        "directional_prior": 0.1,
        "hold_row_norm": "median",
        "stratified_timesteps": True,
        "lr_scheduler": "warmup_stable_decay",
        "lr_warmup_steps": 1,
        "lr_decay_steps": 2,
        "learning_rate": 0.04,
    }
    training_run.train_concepts(settings("whole", **options), progress=False)
    expected = runs.content(settings("whole").output_dir)
    with runs.stopped_after(2, monkeypatch), pytest.raises(errors.Stopped):
        go_on(settings, **options)
    learned = go_on(settings, **options)
    found = runs.content(settings().output_dir)
    assert found == expected
    rates = [line["learning_rate"] for line in found["metrics.jsonl"]]
    np.testing.assert_allclose(rates, 0.04 * np.array([0, 1, 1, 1, 1, 0.5]), rtol=1e-6)
    # It began at a length of its own; all steps with a rate have the vocabulary's.
    lengths = [line["row_norm"][0] for line in found["metrics.jsonl"]]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    told = registry.read(settings().output_dir / find.SAFETENSORS_NAME)
    assert float(told.embedding.provenance["row_norm"]) == pytest.approx(
        np.linalg.norm(learned.rows["text_encoder"]), rel=1e-3
    )


@without_networks
def test_an_earlier_checkpoint_is_gone_on_from_elsewhere(settings, whole, tmp_path):
    path = str(whole / "checkpoints" / "4")
    config = settings(resume_from_checkpoint=path)
    (learned,) = training_run.train_concepts(config, progress=False)
    np.testing.assert_array_equal(
        learned.rows["text_encoder"], find.load_embedding(whole).rows["text_encoder"]
    )
    assert runs.checkpoints(tmp_path / "run") == [6]
    lines = runs.content(tmp_path / "run")["metrics.jsonl"]
    assert lines == runs.content(whole)["metrics.jsonl"][4:]


@without_networks
def test_the_trainer_goes_on_with_other_devices(settings, whole, monkeypatch):
    make_mesh = sharding.make_mesh
    for devices, steps in ((1, 2), (8, 4), (2, 6)):
        chosen = jax.devices()[:devices]
        monkeypatch.setattr(
            sharding, "make_mesh", lambda d=chosen, **keys: make_mesh(d, **keys)
        )
        learned = go_on(settings, max_train_steps=steps)
    # As in tests/step/test_train_step.py: the gradient is a sum over the batch, in
    # another order on other devices, and Adam divides by its size.
    np.testing.assert_allclose(
        learned.rows["text_encoder"],
        find.load_embedding(whole).rows["text_encoder"],
        rtol=0,
        atol=2e-5,
    )
    lines = runs.content(settings().output_dir)["metrics.jsonl"]
    assert [line["step"] for line in lines] == [*range(1, 7)]


@pytest.mark.slow
def test_one_device_then_eight_then_two_agree_with_one(tmp_path):
    """With the networks, and through checkpoints."""
    concept = slots.Concept(seed=1, pictures=3, prompts=5, vectors=2)
    folder = orbax_folder.epath.Path(tmp_path / "checkpoints")

    def train(devices, state, dispatch):
        recipe = slots.make_recipe(devices)
        first, bank = slots.make_run(recipe, concept)
        frozen, steps = slots.make_frozen(recipe), slots.compiled(recipe)
        if state is not None:
            first = sharding.replicate(state, recipe.mesh)
        return steps(first, frozen, bank, dispatch)[0]

    def through_disk(number, state):
        run = {"config": {}, "fingerprints": {}, "versions": {}}
        with store.Checkpoints(folder, None, run) as checkpoints:
            checkpoints.save(number, state)
        found = identity.FoundCheckpoint(folder, number, run)
        return store.restore(found, jax.tree.map(np.zeros_like, state))[1]

    state = None
    for number, devices in ((4, 1), (8, 8), (12, 2)):
        state = through_disk(number, train(devices, state, 4))
    expected = train(1, None, 12)
    # As eight devices agree with one in test_step: Adam's first steps are +-lr.
    np.testing.assert_allclose(
        state.rows["text_encoder"], expected.rows["text_encoder"], rtol=0, atol=2e-5
    )
    np.testing.assert_array_equal(state.step, [12])
