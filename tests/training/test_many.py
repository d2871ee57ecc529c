"""A queue of concepts leaves what runs of their own leave, whatever happens to it."""

import json
import shutil
import threading
from concurrent import futures

import jax
import many
import numpy as np
import pytest
import runs

from ti_flax.config import folder_names
from ti_flax.config.many_keys import Part
from ti_flax.formats import find
from ti_flax.runtime.errors import Stopped, UserError
from ti_flax.step import dispatch
from ti_flax.training import divergence, ledger, loop, queue, survey
from ti_flax.training import many as train_many_module
from ti_flax.training import run as training_run
from ti_flax.training.many import train_many

# Another number of slots is another order of summation, which Adam enlarges; that of
# tests/step/test_slots.py.
ATOL = 2e-5
# What a run of the whole list keeps of it.
FILE = ledger.NAME.format(Part().suffix)


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    runs.skip_networks(monkeypatch)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return many.write_list(tmp_path_factory.mktemp("list of [5]"))


def train(model, path, folder, **given):
    """The folder that the command leaves."""
    train_many(many.load(model, path, folder, **given), progress=False)
    return folder


def content(folder):
    """What queues of the same concepts must agree in, to the bit."""
    return {name: runs.content(folder / name) for name in many.LIST}


@pytest.fixture(scope="module")
def whole(tiny_model, path, tmp_path_factory):
    """The folder of a queue through 2 slots that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        runs.skip_networks(patch)
        return train(tiny_model, path, tmp_path_factory.mktemp("whole") / "q", slots=2)


def rows_of(folder):
    return find.load_embedding(folder).rows["text_encoder"]


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("name", many.LIST)
def test_a_concept_leaves_what_a_run_of_its_own_leaves(
    name, tiny_model, path, whole, tmp_path
):
    asked = many.load(tiny_model, path, tmp_path / "alone")
    config = next(each.config for each in asked.concepts if each.name == name)
    training_run.train_concepts(config, progress=False)
    ours, alone = whole / name, tmp_path / "alone" / name
    names = [sorted(runs.content(folder)) for folder in (ours, alone)]
    assert names[0] == names[1] and "learned_embeds.bin" in names[0]
    assert runs.checkpoints(ours) == runs.checkpoints(alone)
    np.testing.assert_allclose(rows_of(ours), rows_of(alone), rtol=0, atol=ATOL)
    for file in ("metrics.jsonl", "validation.jsonl"):
        found, expected = read(ours, file), read(alone, file)
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            for key in one.keys() - {"examples_per_second", "nearest", "previews"}:
                np.testing.assert_allclose(one[key], other[key], rtol=1e-3, atol=ATOL)
    finished = (ours / "report.html").read_text()
    assert f"{config.max_train_steps} of {config.max_train_steps} steps" in finished


@pytest.mark.parametrize(
    "slots", [1, None, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))]
)
def test_any_number_of_slots_teaches_the_same_and_compiles_once(
    slots, tiny_model, path, whole, tmp_path, monkeypatch
):
    compiled, compile_train_steps = [], dispatch.compile_train_steps

    def count(recipe, shapes):
        compiled.append(shapes[0].step.shape[0])
        return compile_train_steps(recipe, shapes)

    monkeypatch.setattr(dispatch, "compile_train_steps", count)
    given = {} if slots is None else {"slots": slots}
    folder = train(tiny_model, path, tmp_path / "q", **given)
    # A program compiled for shapes takes no others.
    assert compiled == [slots or 5]
    for name in many.LIST:
        ours, theirs = rows_of(folder / name), rows_of(whole / name)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)


def refuse_above(most, monkeypatch):
    """A compiler whose memory is too small for more slots; the numbers it is given."""
    tried, compile_train_steps = [], dispatch.compile_train_steps

    def refuse(recipe, shapes):
        tried.append(len(shapes[0].step))
        if tried[-1] <= most:
            return compile_train_steps(recipe, shapes)
        compiling = futures.Future()
        told = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom"
        compiling.set_exception(jax.errors.JaxRuntimeError(told))
        device = recipe.mesh.devices.flat[0]
        return dispatch.TrainSteps(pytest.fail, compiling, device)

    monkeypatch.setattr(dispatch, "compile_train_steps", refuse)
    return tried


def test_slots_that_the_compiler_refuses_become_those_that_fit(
    tiny_model, path, whole, tmp_path, monkeypatch, caplog
):
    tried, folder = refuse_above(2, monkeypatch), tmp_path / "q"
    with runs.stopped_after(4, monkeypatch), pytest.raises(Stopped):
        train(tiny_model, path, folder)
    assert tried[:2] == [5, 4] and len(set(tried)) == len(tried)
    assert "slots: a step of 5 does not fit into a device's memory, of 2" in caplog.text
    assert caplog.text.count("does not fit") == 1
    # As those of a run that was asked for so many, whatever interrupts it.
    train(tiny_model, path, folder)
    assert content(folder) == content(whole)


def test_not_even_one_slot_is_one_line(tiny_model, path, tmp_path, monkeypatch):
    refuse_above(0, monkeypatch)
    with pytest.raises(UserError, match="train_batch_size: expected a step that fits"):
        train(tiny_model, path, tmp_path / "q")


def test_neighbours_slot_and_time_in_the_queue_change_no_bit(
    tiny_model, whole, tmp_path
):
    backwards = dict(reversed(many.LIST.items()))
    path = many.write_list(tmp_path, backwards)
    folder = train(tiny_model, path, tmp_path / "q", slots=2)
    for name in many.LIST:
        ours = runs.content(folder / name)
        assert ours == runs.content(whole / name)


@pytest.mark.parametrize(
    "step", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 6))]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    step, tiny_model, path, whole, tmp_path, monkeypatch
):
    folder = tmp_path / "q"
    with runs.stopped_after(step, monkeypatch), pytest.raises(Stopped, match="SIGTERM"):
        train(tiny_model, path, folder, slots=2)
    assert any(each["state"] != "done" for each in states(folder).values())
    train(tiny_model, path, folder, slots=2)
    assert content(folder) == content(whole)
    assert {each["state"] for each in states(folder).values()} == {"done"}


def test_what_is_left_of_a_queue_gets_as_many_slots(tiny_model, path, tmp_path):
    """Fewer would round otherwise."""
    folder = tmp_path / "q"
    folder.mkdir()
    asked = many.load(tiny_model, path, folder)
    concepts = asked.concepts
    first = ledger.Ledger(asked)
    assert first.slots_for(concepts[:4], 3) == 3
    first.begin(concepts[0], 0)
    later = ledger.Ledger(asked)
    assert later.slots_for(concepts[3:4], 3) == 3
    # But for a user who wants fewer, or a group that was not begun.
    assert later.slots_for(concepts[3:4], 2) == 2
    assert ledger.Ledger(asked).slots_for(concepts[4:], 3) == 1


def states(folder):
    return json.loads((folder / FILE).read_text())["concepts"]


def test_what_is_done_is_not_read_again(tiny_model, path, whole, tmp_path, monkeypatch):
    folder = tmp_path / "q"
    shutil.copytree(whole, folder)
    # Its configuration says where it lies.
    train(tiny_model, path, folder, slots=2)
    monkeypatch.setattr(survey, "read_inputs", None)
    train(tiny_model, path, folder, slots=2)
    assert content(folder) == content(whole)


def test_a_concept_whose_keys_changed_goes_on(tiny_model, path, tmp_path):
    folder = train(tiny_model, path, tmp_path / "q", max_train_steps=6)
    before = rows_of(folder / "cat")
    train(tiny_model, path, folder, max_train_steps=8)
    assert states(folder)["cat"]["steps"] == 8
    assert states(folder)["dog"]["steps"] == 4
    assert np.abs(rows_of(folder / "cat") - before).max() > 0
    assert [line["step"] for line in read(folder / "cat", "metrics.jsonl")] == [
        *range(1, 9)
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"concepts": {}}', '{"words_per_hour": 1, "concepts": 2}'),
        '{"words_per_hour": "fast", "concepts": {"cat": 3, "dog": {"config": 1}}}',
        '{"words_per_hour": -1, "concepts": {"cat": {"state": "done"}}}',
    ],
)
def test_a_ledger_that_is_none_is_passed_over(text, tiny_model, path, tmp_path):
    folder = tmp_path / "q"
    folder.mkdir()
    (folder / FILE).write_text(text)
    asked = many.load(tiny_model, path, folder)
    read_anew = ledger.Ledger(asked)
    assert read_anew.counts() == {"waiting": 5}


def test_mistakes_of_all_are_told_before_anything_is_trained(
    tiny_model, tmp_path, caplog
):
    path = many.write_list(tmp_path)
    for name in ("dog", "frog"):
        shutil.rmtree(tmp_path / "pictures" / name)
    with pytest.raises(UserError, match="found 2 of 5 with one"):
        train(tiny_model, path, tmp_path / "q")
    told = [record.getMessage() for record in caplog.records]
    assert sum("train_data_dir: expected a folder" in line for line in told) == 2
    assert any(line.startswith("dog: ") for line in told)
    assert not any((tmp_path / "q" / name).exists() for name in many.LIST)


def test_bad_concepts_are_skipped_when_asked_and_listed_at_the_end(
    tiny_model, whole, tmp_path
):
    path = many.write_list(tmp_path)
    shutil.rmtree(tmp_path / "pictures" / "dog")
    with pytest.raises(UserError, match="1 of 5 concepts failed: dog;"):
        train(tiny_model, path, tmp_path / "q", slots=2, skip_bad_concepts=True)
    for name in set(many.LIST) - {"dog"}:
        assert runs.content(tmp_path / "q" / name) == runs.content(whole / name)
    assert states(tmp_path / "q")["dog"]["state"] == "failed"
    page = (tmp_path / "q" / "index.html").read_text()
    assert "expected a folder of pictures" in page
    # Mended, it is learned.
    many.write_list(tmp_path)
    train(tiny_model, path, tmp_path / "q", slots=2, skip_bad_concepts=True)
    ours, theirs = (rows_of(folder / "dog") for folder in (tmp_path / "q", whole))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)


def test_what_becomes_bad_while_it_waits_does_not_stop_the_others(
    tiny_model, whole, tmp_path, monkeypatch
):
    path = many.write_list(tmp_path)
    read_inputs = queue.read_inputs

    def fail(config, like):
        if config.output_dir.name == "bird":
            raise UserError("train_data_dir: it is gone")
        return read_inputs(config, like)

    monkeypatch.setattr(queue, "read_inputs", fail)
    with pytest.raises(UserError, match="1 of 5 concepts failed: bird;"):
        train(tiny_model, path, tmp_path / "q", slots=2)
    for name in set(many.LIST) - {"bird"}:
        assert runs.content(tmp_path / "q" / name) == runs.content(whole / name)


def test_the_next_concepts_are_encoded_while_steps_run(
    tiny_model, path, whole, tmp_path, monkeypatch
):
    encoded, seen = queue.encode_buckets, threading.Semaphore(0)
    threads, run = [], loop.run

    def note(config, inputs, encode, progress):
        buckets = encoded(config, inputs, encode, progress)
        threads.append(threading.current_thread())
        seen.release()
        return buckets

    def wait_in_the_first_step(train_steps, *arguments):
        left = [2 + 2]  # those that are seated, and as many that wait

        def take(state, num_steps):
            while left[0]:
                assert seen.acquire(timeout=100)
                left[0] -= 1
            return train_steps(state, num_steps)

        return run(take, *arguments)

    monkeypatch.setattr(queue, "encode_buckets", note)
    monkeypatch.setattr(loop, "run", wait_in_the_first_step)
    folder = train(tiny_model, path, tmp_path / "q", slots=2)
    assert threading.main_thread() not in threads and len(threads) == 5
    for name in many.LIST:
        assert runs.content(folder / name) == runs.content(whole / name)


def test_a_concept_that_diverges_leaves_its_slot_to_another(
    tiny_model, whole, tmp_path, monkeypatch
):
    path = many.write_list(tmp_path)
    started = []
    make = divergence.DivergenceGuard.__init__

    def remember(self, *arguments):
        make(self, *arguments)
        started.append(self)

    def diverged(self):
        return self is started[0] and self._step >= 3  # the cat's

    monkeypatch.setattr(divergence.DivergenceGuard, "__init__", remember)
    monkeypatch.setattr(divergence.DivergenceGuard, "diverged", property(diverged))
    with pytest.raises(UserError, match="1 of 5 concepts failed: cat;"):
        train(tiny_model, path, tmp_path / "q", slots=2)
    assert "lower learning_rate" in states(tmp_path / "q")["cat"]["reason"]
    # The vectors before are there.
    assert rows_of(tmp_path / "q" / "cat").shape[0] == 2
    for name in set(many.LIST) - {"cat"}:
        assert runs.content(tmp_path / "q" / name) == runs.content(whole / name)


def test_concepts_of_other_rules_and_sizes_make_groups(
    tiny_model, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO", "ti_flax")
    listed = {
        "cat": {},
        "dog": {"stop": "plateau", "plateau_patience": 2},
        "bird": {"keep": "best"},
    }
    path = many.write_list(tmp_path, listed)
    given = {"fixed_loss_steps": 1, "learning_rate": 1e-6}
    loaded, load = [], train_many_module.load

    def count(*arguments):
        loaded.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(train_many_module, "load", count)
    folder = train(tiny_model, path, tmp_path / "q", **given)
    assert len(loaded) == 1
    assert "2 groups of concepts, of 1, 2," in caplog.text
    # At such a rate nothing falls by half a percent.
    assert states(folder)["dog"]["reason"] == "the fixed loss has settled"
    assert states(folder)["dog"]["steps"] < 6 == states(folder)["bird"]["steps"]
    assert "fixed_loss" not in read(folder / "cat", "metrics.jsonl")[0]
    assert "fixed_loss" in read(folder / "bird", "metrics.jsonl")[0]


def test_what_a_run_took_is_without_its_compilation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(train_many_module.time, "perf_counter", lambda: now[0])
    spent = train_many_module.Spent()
    for compiling, dispatches, rest in ((30.0, [2.0, 4.0], 1.0), (5.0, [3.0], 2.0)):
        spent.begin()
        now[0] += compiling
        spent.add(1, compiling)
        for seconds in dispatches:
            now[0] += seconds
            spent.add(10, seconds)
        now[0] += rest
        spent.end()
    assert (spent.seconds, spent.in_steps, spent.steps) == (12.0, 9.0, 30)


def test_no_concept_takes_the_name_of_a_file_of_the_run(whole):
    files = [path.name for path in whole.iterdir() if path.is_file()]
    assert sorted(files) == [FILE, "index.html"]
    of_parts = [ledger.NAME.format(Part(*part).suffix) for part in ((0, 2), (11, 99))]
    assert not any(map(folder_names.is_name, [*files, *of_parts]))
    assert folder_names.is_name("concepts-of-2.json")


@pytest.mark.parametrize(("slots", "told"), [(1, "1 examples on 8"), (3, "3 slots")])
def test_a_batch_of_all_slots_that_does_not_split_is_told(
    slots, told, tiny_model, path, tmp_path, caplog
):
    """Of 8 devices, as the tests have them; 8 slots of one example do."""
    listed = {"train_batch_size": 1, "max_train_steps": 3, "slots": slots}
    train(tiny_model, path, tmp_path / "q", **listed)
    assert told in caplog.text and caplog.text.count("take as long as") == 1


def test_one_list_at_a_time_writes_a_folder(tiny_model, path, tmp_path):
    folder = tmp_path / "q"
    lock = train_many_module.FolderLock(folder, "output_dir")
    lock.take()
    with pytest.raises(UserError, match="another run is writing"):
        train(tiny_model, path, folder)
    lock.give_up()
