"""A run of several concepts: what is asked for, and every mistake in one line."""

import logging
import time
from pathlib import Path

import pytest
import yaml

from ti_flax.config import concept_list, folder_names, many_keys, run_keys
from ti_flax.config.bucket_keys import BucketKeys
from ti_flax.config.checkpoint_keys import CheckpointKeys
from ti_flax.config.concepts import ALL_GROUPS, Many, load
from ti_flax.config.many_keys import OWN, ManyKeys
from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.config.run_config import Config, dump_yaml, load_config
from ti_flax.config.training_keys import ComputeKeys, OutputKeys
from ti_flax.runtime.errors import UserError

MODEL = "--pretrained_model_name_or_path=sd"
SINGLE = [MODEL, "--train_data_dir=pictures/cat", "--placeholder_token=<cat>"]
TWO = """
cat_toy: {train_data_dir: pictures/cat, placeholder_token: <cat-toy>}
teapot: {train_data_dir: pictures/teapot, placeholder_token: <teapot>, seed: 1}
"""
# Keys that all concepts share, of groups that have both kinds.
SHARED_OF_GROUPS = {
    "MaskKeys": {"masked_loss", "normalize_masked_area_loss"},
    "OptimizerKeys": {
        "train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate_te1",
        "learning_rate_te2",
        "scale_lr",
        "optimizer",
        "directional_prior",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "adam_weight_decay",
        "max_grad_norm",
        "hold_row_norm",
        "row_decay",
    },
    "StoppingKeys": {"dvar_window", "fixed_loss_steps"},
    "OutputKeys": set(OutputKeys.model_fields) - {"checkpointing_steps"},
    "ReportKeys": {"report_to", "logging_dir"},
    "ResultKeys": {
        "save_as_full_pipeline",
        "push_to_hub",
        "hub_private_repo",
        "hub_token",
    },
}
ALL_SHARED = (
    run_keys.ModelKeys,
    CheckpointKeys,
    run_keys.DataKeys,
    BucketKeys,
    ObjectiveKeys,
    ComputeKeys,
    run_keys.HostKeys,
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="concepts.yaml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.fixture
def many(write):
    """Loads a list of concepts with flags beside it."""

    def many(text, *flags):
        found = load([MODEL, f"--concepts={write(text)}", *flags])
        assert isinstance(found, Many)
        return found

    return many


def by_name(found):
    return {each.name: each.config for each in found.concepts}


def line_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600, message
    return message


def logged(caplog, level):
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def errors_of(caplog, call, *args):
    """The lines of the concepts' mistakes, and the one that ends all."""
    caplog.clear()
    last = line_of(call, *args)
    lines = logged(caplog, logging.ERROR)
    assert lines and all(line.isprintable() and len(line) < 600 for line in lines)
    assert f"found {len(lines)} of " in last
    return lines, last


# Which keys are a concept's own


def test_every_own_key_is_a_key():
    assert set(Config.model_fields) > OWN
    assert "name" not in Config.model_fields and "name" not in OWN


def test_every_key_is_own_or_shared_by_a_decision():
    groups = {group.__name__: group for group in run_keys.GROUPS.values()}
    shared = {key for group in ALL_SHARED for key in group.model_fields}
    for name, keys in SHARED_OF_GROUPS.items():
        assert keys < set(groups.pop(name).model_fields)
        shared |= keys
    assert shared | OWN == set(Config.model_fields)
    assert not shared & OWN
    # Of the rest, each group is wholly of one kind.
    for name, group in groups.items():
        own = set(group.model_fields) & OWN
        assert own in (set(), set(group.model_fields)), name


def test_keys_of_many_are_no_keys_of_a_run():
    assert not set(ManyKeys.model_fields) & set(Config.model_fields)
    assert list(ALL_GROUPS)[:-1] == list(run_keys.GROUPS)


# One concept


@pytest.mark.parametrize(
    "flags",
    [[], ["--seed=3", "--preset=diffusers"], ["--lr_warmup_steps=5"], ["--repeats=3"]],
)
def test_without_a_list_all_is_as_before(flags, caplog, capsys):
    assert load([*SINGLE, *flags]) == load_config([*SINGLE, *flags])
    lines = logged(caplog, logging.WARNING)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    for read in (load, load_config):
        with pytest.raises(SystemExit) as caught:
            read([*SINGLE, *flags, "--print_config"])
        assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed == 2 * dump_yaml(load_config([*SINGLE, *flags]))
    assert "concepts:" not in printed and "sweep:" not in printed


@pytest.mark.parametrize(
    "flags", [[], ["--seed=x"], ["--sed=1"], ["--train_data_dir="], ["x.yaml"]]
)
def test_without_a_list_mistakes_are_told_as_before(flags):
    given = [*SINGLE[1:], *flags]
    assert line_of(load, given) == line_of(load_config, given)


def test_help_has_the_keys_in_a_group_of_train_alone(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    texts = []
    for read in (load, load_config):
        with pytest.raises(SystemExit) as caught:
            read(["--help"])
        assert caught.value.code == 0
        texts.append(capsys.readouterr().out)
    new, old = texts
    head, group = new.split("\nMany concepts:\n")
    assert head.split() == old.split("\nA switch is")[0].split()
    for key, field in ManyKeys.model_fields.items():
        assert f"--{key} " in group and f"--{key} " not in old
        assert field.description in group


def test_other_commands_do_not_know_the_keys(write):
    file = write("slots: 2")
    for flag in ("--concepts=x", "--sweep", "--slots=2", "--skip_bad_concepts"):
        assert "unknown flag" in line_of(load_config, [*SINGLE, flag])
    assert "unknown key 'slots'" in line_of(load_config, [*SINGLE, f"--config={file}"])


def test_keys_of_many_without_concepts_are_checked_and_said_to_be_idle(caplog):
    assert load([*SINGLE, "--slots=2", "--concepts=none"]) == load_config(SINGLE)
    assert logged(caplog, logging.WARNING) == [
        "slots: no effect without concepts or sweep"
    ]
    for wrong in ("--slots=0", "--slots=9999999", "--slots=many"):
        assert line_of(load, [*SINGLE, wrong]).startswith("slots: expected ")
    line = line_of(load, [*SINGLE, "--skip_bad_concepts=maybe"])
    assert line == "skip_bad_concepts: expected true or false, found 'maybe'"


def test_braces_in_prompts_stand_for_the_word(many):
    flags = ["--validation_prompt", "a {} on a {}", "a heart"]
    assert load([*SINGLE, *flags]).validation_prompt == (
        "a <cat> on a <cat>",
        "a heart",
    )
    found = by_name(many(TWO, *flags))
    assert found["cat_toy"].validation_prompt == (
        "a <cat-toy> on a <cat-toy>",
        "a heart",
    )
    assert found["teapot"].validation_prompt == ("a <teapot> on a <teapot>", "a heart")
    wrong = [SINGLE[0], SINGLE[1], "--placeholder_token=", *flags]
    assert line_of(load, wrong).startswith("placeholder_token: expected ")


# Lists


def test_a_mapping_names_concepts_and_their_keys(many):
    found = many(TWO, "--output_dir=out", "--seed=7", "--slots=3")
    assert [each.name for each in found.concepts] == ["cat_toy", "teapot"]
    assert (found.output_dir, found.slots, found.bad) == (Path("out"), 3, [])
    cat, teapot = (each.config for each in found.concepts)
    assert (cat.seed, teapot.seed) == (7, 1)
    assert str(teapot.train_data_dir) == "pictures/teapot"
    assert (cat.placeholder_token, cat.output_dir) == ("<cat-toy>", Path("out/cat_toy"))
    assert teapot.output_dir == Path("out/teapot")
    assert [each.settings for each in found.concepts] == [{}, {}]
    assert many(TWO).slots is None


def test_a_list_has_names_or_takes_them_from_the_words(many):
    found = many(
        """
        - {placeholder_token: "<cat toy>/2", train_data_dir: a}
        - {placeholder_token: <cat>, train_data_dir: b, name: Second one}
        - {placeholder_token: <..con>, train_data_dir: c}
        - {placeholder_token: <<>>, train_data_dir: d}
        - {placeholder_token: <猫>, train_data_dir: e, name: 7}
        - {placeholder_token: <猫>, train_data_dir: f}
        """
    )
    names = [each.name for each in found.concepts]
    assert names == ["cat-toy-2", "Second one", "_con", "_", "7", "猫"]
    assert [str(each.config.train_data_dir) for each in found.concepts] == list(
        "abcdef"
    )
    assert all(folder_names.is_name(name) for name in names)


def test_a_folder_of_folders_is_a_concept_each(tmp_path):
    for name in ("Red Chair", "cat", ".hidden", "it's (2)"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "other").symlink_to(tmp_path / "cat")
    found = load([MODEL, f"--concepts={tmp_path}", "--train_data_dir=elsewhere"])
    assert [each.name for each in found.concepts] == [
        "Red Chair",
        "cat",
        "it-s 2",
        "other",
    ]
    words = [each.config.placeholder_token for each in found.concepts]
    assert words == ["<red-chair>", "<cat>", "<it's-(2)>", "<other>"]
    folders = [each.config.train_data_dir for each in found.concepts]
    assert folders == [
        tmp_path / name for name in ("Red Chair", "cat", "it's (2)", "other")
    ]


def test_the_list_may_be_named_in_the_configuration(write):
    text = {
        "concepts": str(write(TWO)),
        "sweep": {"num_vectors": [1, 4]},
        "slots": 2,
        "skip_bad_concepts": True,
        "pretrained_model_name_or_path": "sd",
    }
    file = write(yaml.safe_dump(text), "run.yaml")
    found = load([f"--config={file}"])
    assert [each.name for each in found.concepts] == [
        f"{name}-num_vectors_{count}"
        for name in ("cat_toy", "teapot")
        for count in (1, 4)
    ]
    assert found.slots == 2
    # The command line wins, of `sweep` as a whole.
    other = load([f"--config={file}", "--sweep", "seed=1", "--slots=none"])
    assert [each.name for each in other.concepts] == ["cat_toy-seed_1", "teapot-seed_1"]
    assert other.slots is None


def test_what_a_concept_writes_reads_back_as_a_run_of_its_own(many, write):
    found = many(TWO, "--sweep", "num_vectors=1,2", "--validation_prompt={} here")
    assert len(found.concepts) == 4
    for each in found.concepts:
        text = dump_yaml(each.config)
        assert set(yaml.safe_load(text)) <= set(Config.model_fields)
        file = write(text, "again.yaml")
        again = load([f"--config={file}"])
        assert again == each.config == load_config([f"--config={file}"])


def test_print_config_prints_every_concept(write, capsys):
    given = [MODEL, f"--concepts={write(TWO)}"]
    with pytest.raises(SystemExit) as caught:
        load([*given, "--print_config"])
    assert caught.value.code == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    expected = [yaml.safe_load(dump_yaml(c.config)) for c in load(given).concepts]
    assert printed == expected and len(printed) == 2


# Which value wins


def test_each_source_wins_over_those_before_it(write):
    toml = write(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pictures"\nnum_repeats = 2\n'
        "keep_tokens = 1\n",
        "dataset.toml",
    )
    run = write(f"{MODEL[2:].replace('=', ': ')}\nlr_power: 2.0\nseed: 2\n", "run.yaml")
    file = write(
        """
        a: {placeholder_token: <a>, seed: 4, num_vectors: 4}
        b: {placeholder_token: <b>, learning_rate: 0.5, max_train_steps: 9}
        c: {placeholder_token: <c>, keep_tokens: 3, train_data_dir: mine}
        """
    )
    found = load(
        [
            f"--config={run}",
            f"--concepts={file}",
            f"--dataset_config={toml}",
            "--preset=diffusers",
            "--lr_power=3",
            "--sweep=num_vectors=6",
        ]
    )
    a, b, c = (each.config for each in found.concepts)
    assert (a.num_vectors, b.num_vectors, c.num_vectors) == (6, 6, 6)  # sweep
    assert (a.seed, b.seed, c.seed) == (4, 2, 2)  # own, file
    assert (a.lr_power, b.lr_power) == (3, 3)  # command line
    assert (a.keep_tokens, c.keep_tokens) == (1, 3)  # dataset_config, own
    assert (a.max_train_steps, b.max_train_steps) == (5000, 9)  # preset, own
    assert (a.learning_rate, b.learning_rate) == (1e-4, 0.5)
    assert (str(a.train_data_dir), str(c.train_data_dir)) == ("pictures", "mine")
    assert (a.lr_num_cycles, a.train_batch_size) == (1, 16)


def test_folders_of_dataset_config_are_not_looked_for_in_others(write):
    toml = write(
        "[[datasets]]\n"
        '[[datasets.subsets]]\nimage_dir = "p/one"\n'
        '[[datasets.subsets]]\nimage_dir = "p/two"\nnum_repeats = 3\n',
        "dataset.toml",
    )
    file = write(
        """
        a: {placeholder_token: <a>}
        b: {placeholder_token: <b>, train_data_dir: mine}
        c: {placeholder_token: <c>, train_data_dir: mine, subsets: [x]}
        """
    )
    given = [MODEL, f"--concepts={file}", f"--dataset_config={toml}"]
    subsets = [each.config.subsets for each in load(given).concepts]
    assert subsets == [("one", "3:two"), (), ("x",)]
    subsets = [each.config.subsets for each in load([*given, "--subsets=y"]).concepts]
    assert subsets == [("y",), ("y",), ("x",)]


def test_folders_and_repositories_are_those_of_the_concept(many):
    given = [
        "--output_dir=out",
        "--push_to_hub",
        "--hub_model_id=me/ti-{}",
        "--resume_from_checkpoint=latest",
    ]
    found = by_name(many(TWO, *given, "--checkpoint_dir=gs://bucket/x/"))
    assert {name: (c.checkpoint_dir, c.hub_model_id) for name, c in found.items()} == {
        "cat_toy": ("gs://bucket/x/cat_toy", "me/ti-cat_toy"),
        "teapot": ("gs://bucket/x/teapot", "me/ti-teapot"),
    }
    for flags in ([], ["--resume_from_checkpoint=none"]):
        for config in by_name(many(TWO, *flags)).values():
            assert config.resume_from_checkpoint == "latest"
            assert config.checkpoint_dir is None and config.hub_model_id is None


# Sweeps


def test_a_sweep_is_each_value_with_each(many):
    found = many(TWO, "--sweep", "learning_rate=0.001,0.005", "num_vectors=1,4")
    assert [each.name for each in found.concepts] == [
        f"{name}-learning_rate_{rate}-num_vectors_{count}"
        for name in ("cat_toy", "teapot")
        for rate in ("0.001", "0.005")
        for count in (1, 4)
    ]
    assert [each.settings for each in found.concepts] == 2 * [
        {"learning_rate": rate, "num_vectors": count}
        for rate in (0.001, 0.005)
        for count in (1, 4)
    ]
    for name, config, settings in found.concepts:
        assert config.output_dir.name == name
        assert (config.learning_rate, config.num_vectors) == tuple(settings.values())
        assert config.seed == (1 if "teapot" in name else 42)


def test_a_sweep_without_a_list_is_of_the_configuration():
    found = load([*SINGLE, "--sweep", "learning_rate=1e-3,5e-4", "--sweep", "seed=1,2"])
    assert [each.name for each in found.concepts] == [
        "learning_rate_1e-3-seed_1",
        "learning_rate_1e-3-seed_2",
        "learning_rate_5e-4-seed_1",
        "learning_rate_5e-4-seed_2",
    ]
    assert found.concepts[-1].settings == {"learning_rate": 5e-4, "seed": 2}
    assert all(str(c.config.train_data_dir) == "pictures/cat" for c in found.concepts)


def test_names_of_a_sweep_are_folders_names_and_each_is_once(write):
    sweep = {
        "initializer_token": ["toy cat", "toy/cat", "Toy:Cat", "x" * 500, None],
        "validation_prompt": [["a {}", "b {}"], "c {}"],
        "shuffle_caption": [True, False],
    }
    file = write(yaml.safe_dump({"sweep": sweep}, sort_keys=False), "run.yaml")
    found = load([*SINGLE, f"--config={file}"])
    names = [each.name for each in found.concepts]
    assert len({name.casefold() for name in names}) == len(names) == 20
    assert all(folder_names.is_name(name) for name in names), names
    stem = "initializer_token_{}-validation_prompt_{}-shuffle_caption_{}"
    assert names[0] == stem.format("toy-cat", "a_b", "true")
    assert names[4] == stem.format("toy-cat", "a_b", "true") + "-2"
    assert names[8] == stem.format("Toy-Cat", "a_b", "true") + "-3"
    assert names[-1] == stem.format("none", "c", "false")
    assert found.concepts[-1].config.initializer_token is None
    assert found.concepts[0].config.validation_prompt == ("a <cat>", "b <cat>")


def test_none_of_the_command_line_empties_a_key_that_may_be_empty():
    found = load([*SINGLE, "--sweep", "initializer_token=none,toy"])
    assert [each.settings["initializer_token"] for each in found.concepts] == [
        None,
        "toy",
    ]


SWEEPS = {
    "": "expected learning_rate=0.001,0.005",
    "learning_rate": "expected learning_rate=0.001,0.005",
    "learning_rate=": "learning_rate: expected values with a comma between them",
    "num_vectors=1,,2": "num_vectors: expected values with a comma between them",
    "num_vectors=1,1": "num_vectors: '1' is given twice; remove one",
    "learning_rat=1": "unknown key 'learning_rat'; did you mean learning_rate?",
    "zzzz=1": "unknown key 'zzzz'; --help lists all keys",
    "resolution=256,512": "resolution is the same for all concepts; set it beside",
    "slots=1,2": "slots is the same for all concepts; set it beside concepts",
    "name=a,b": "unknown key 'name'",
}


@pytest.mark.parametrize("text", SWEEPS)
def test_a_faulty_sweep_is_told_in_one_line(text):
    line = line_of(load, [*SINGLE, f"--sweep={text}"])
    assert line.startswith(f"sweep: {SWEEPS[text]}")


def test_a_key_swept_twice_is_told():
    line = line_of(load, [*SINGLE, "--sweep", "seed=1", "seed=2"])
    assert line == "sweep: seed is given twice; give all its values at once"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, "expected learning_rate=0.001,0.005"),
        (3, "expected learning_rate=0.001,0.005"),
        ([1, 2], "expected learning_rate=0.001,0.005"),
        ({"seed": []}, "seed: expected a list of values, found []; give one"),
        ({"seed": 1}, "seed: expected a list of values, found 1; give one"),
        ({"seed": {"a": 1}}, "seed: expected a list of values, found {'a': 1}"),
        ({"seed": [{"a": 1}]}, "seed: expected a value, or a list of them, found {'a'"),
        ({"subsets": [[["x"]]]}, "subsets: expected a value, or a list of them"),
        ({"seed": [1, 1]}, "seed: 1 is given twice"),
        ({1: [1]}, "unknown key 1"),
        ({"batch_size": [1]}, "unknown key 'batch_size'"),
    ],
)
def test_a_faulty_sweep_in_yaml_is_told_in_one_line(write, sweep, expected):
    file = write(yaml.safe_dump({"sweep": sweep}), "run.yaml")
    line = line_of(load, [*SINGLE, f"--config={file}"])
    assert line.startswith(f"sweep: {expected}")


def test_wrong_values_of_a_sweep_are_told_each(caplog):
    lines, last = errors_of(caplog, load, [*SINGLE, "--sweep", "num_vectors=1,0,99,x"])
    assert [line.partition(", found")[0] for line in lines] == [
        "concept num_vectors_0: num_vectors: expected greater than or equal to 1",
        "concept num_vectors_99: num_vectors: expected less than or equal to 75",
        "concept num_vectors_x: num_vectors: expected a whole number",
    ]
    assert last == (
        "expected concepts without a mistake, found 3 of 4 with one, told above; mend "
        "them, or --skip_bad_concepts trains the others"
    )


# Mistakes of concepts

FAULTY = """
good: {train_data_dir: a, placeholder_token: <a>}
typo: {train_data_dir: a, placeholder_token: <a>, learning_rat: 1}
shared: {train_data_dir: a, placeholder_token: <a>, resolution: 256}
secret: {train_data_dir: a, placeholder_token: <a>, hub_token: abc}
bare: {placeholder_token: <a>}
value: {train_data_dir: a, placeholder_token: <a>, num_vectors: 0}
nested: {train_data_dir: a, placeholder_token: <a>, seed: {b: 1}}
together: {train_data_dir: a, placeholder_token: <a>, stop: dvar, max_train_steps: 9}
scalar: 3
empty:
a/b: {train_data_dir: a, placeholder_token: <a>}
nul.txt: {train_data_dir: a, placeholder_token: <a>}
GOOD: {train_data_dir: a, placeholder_token: <a>}
yes: {train_data_dir: a, placeholder_token: <a>}
output: {train_data_dir: a, placeholder_token: <a>, output_dir: x}
file: {train_data_dir: a, placeholder_token: <a>, dataset_config: x}
number: {train_data_dir: a, placeholder_token: <a>, 3: x}
inside: {train_data_dir: out/other/pictures, placeholder_token: <a>}
named: {name: x, train_data_dir: a, placeholder_token: <a>}
fine: {train_data_dir: b, placeholder_token: <b>}
"""
SAME = "is the same for all concepts; set it beside concepts"
MISTAKES = {
    "typo": "unknown key 'learning_rat'; did you mean learning_rate?",
    "shared": f"resolution {SAME}",
    "secret": f"hub_token {SAME}",
    "bare": "required but missing: train_data_dir; set them in the concept's own",
    "value": "num_vectors: expected greater than or equal to 1, found 0",
    "nested": "seed: expected a value, or a list of them, found {'b': 1}; ",
    "together": "expected dvar_window <= max_train_steps, found 310 > 9; ",
    "scalar": "expected {key: value, ...}, found 3; write each key with its value",
    "empty": "expected {key: value, ...}, found None; write each key with its value",
    "a/b": "expected a name that is a folder's on every system, found 'a/b'; use ",
    "nul.txt": "expected a name that is a folder's on every system, found 'nul.txt'; ",
    "GOOD": "expected a name of its own, found that of another concept (good), ",
    "True": "expected a text as its name, found True; put it in quotes",
    "output": f"output_dir {SAME}",
    "file": f"dataset_config {SAME}",
    "number": "unknown key 3; --help lists all keys",
    "inside": "expected an output_dir that does not hold train_data_dir, found 'out' ",
    "named": "unknown key 'name'; ",
}


def test_all_mistakes_of_all_concepts_are_told_at_once(many, caplog):
    lines, last = errors_of(caplog, many, FAULTY, "--output_dir=out")
    told = dict(line.removeprefix("concept ").split(": ", 1) for line in lines)
    assert set(told) == set(MISTAKES)
    assert len(lines) == len(told)
    for name, expected in MISTAKES.items():
        assert told[name].startswith(expected), (name, told[name])
        assert "abc" not in told[name]
    assert last == (
        "expected concepts without a mistake, found 18 of 20 with one, told above; "
        "mend them, or --skip_bad_concepts trains the others"
    )


def test_bad_concepts_are_left_out_if_that_is_asked_for(many, caplog):
    found = many(FAULTY, "--output_dir=out", "--skip_bad_concepts")
    assert [each.name for each in found.concepts] == ["good", "fine"]
    assert {name for name, _ in found.bad} == set(MISTAKES)
    for name, reason in found.bad:
        assert reason.startswith(MISTAKES[name])
    warnings = logged(caplog, logging.WARNING)
    assert warnings == [f"concept {n}: {r}; it is left out" for n, r in found.bad]
    assert not logged(caplog, logging.ERROR)


def test_if_no_concept_is_left_that_is_an_error(many, caplog):
    text = "a: {train_data_dir: a}\nb: {placeholder_token: <b>}\n"
    line = line_of(many, text, "--skip_bad_concepts")
    assert line == (
        "expected concepts without a mistake, found 2 of 2 with one, told above; mend "
        "them"
    )
    assert len(logged(caplog, logging.WARNING)) == 2


def test_entries_of_a_list_without_a_name_are_told_by_their_number(many, caplog):
    text = """
    - {train_data_dir: a, placeholder_token: <a>}
    - {train_data_dir: b}
    - word
    - {train_data_dir: c, placeholder_token: [<c>]}
    - {train_data_dir: d, placeholder_token: <A>}
    - {train_data_dir: e, placeholder_token: <e>, name: [e]}
    """
    lines, _ = errors_of(caplog, many, text)
    starts = [
        "concept number 2: expected a name or a placeholder_token, found neither",
        "concept number 3: expected {key: value, ...}, found 'word'",
        "concept number 4: expected a name or a placeholder_token, found neither",
        "concept A: expected a name of its own, found that of another concept (a)",
        "concept ['e']: expected a text as its name, found ['e']",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--resolution=500"], "resolution: expected a multiple of 8, found '500'"),
        (["--learning_rate=fast"], "learning_rate: expected a number, found 'fast'"),
        (
            ["--snr_gamma=5", "--debiased_estimation_loss"],
            "expected snr_gamma or debiased_estimation_loss, found both",
        ),
        (["--resume_from_checkpoint=x"], "resume_from_checkpoint: expected latest "),
    ],
)
def test_mistakes_beside_the_list_are_told_once(many, caplog, flags, expected):
    assert line_of(many, TWO, *flags).startswith(expected)
    assert not caplog.records


def test_values_that_do_not_fit_together_may_fit_those_of_a_concept(many, caplog):
    text = """
    a: {train_data_dir: a, placeholder_token: <a>, max_train_steps: 300}
    b: {train_data_dir: b, placeholder_token: <b>, max_train_steps: 400}
    c: {train_data_dir: c, placeholder_token: <c>}
    """
    flags = ["--max_train_steps=50", "--lr_warmup_steps=99", "--lr_scheduler=linear"]
    lines, _ = errors_of(caplog, many, text, *flags)
    assert lines == [
        "concept c: expected lr_warmup_steps <= max_train_steps, found 99 > 50"
    ]
    found = by_name(many(text, *flags, "--skip_bad_concepts"))
    assert [c.max_train_steps for c in found.values()] == [300, 400]


def test_a_missing_model_is_told_once(write):
    line = line_of(load, [f"--concepts={write(TWO)}"])
    assert line.startswith("required but missing: pretrained_model_name_or_path; ")


def test_concepts_that_do_not_fit_beside_each_other_are_told(many):
    line = line_of(many, TWO, "--push_to_hub", "--hub_model_id=me/x")
    assert line.startswith(
        "hub_model_id: expected one of each concept, found 'me/x' for cat_toy and "
        "teapot; write {} where"
    )
    assert many(TWO, "--hub_model_id=me/x").concepts
    sweep = "--sweep=learning_rate=0.1,0.2"
    line = line_of(many, TWO, "--learning_rate_te1=0.3", sweep)
    assert line.startswith(
        "learning_rate_te1: expected one learning_rate for all concepts beside it, "
        "found 0.1, 0.2; "
    )
    assert many(TWO, "--learning_rate_te2=0", sweep).concepts
    assert many(TWO, "--learning_rate_te2=0.1").concepts


def test_flags_without_meaning_and_idle_warmups_are_told_once(many, caplog):
    text = TWO.replace("}", ", repeats: 3, lr_warmup_steps: 5}")
    assert len(many(text).concepts) == 2
    first, second = logged(caplog, logging.WARNING)
    assert first.startswith("repeats is ignored: ")
    assert second.startswith("lr_warmup_steps has no effect with lr_scheduler constant")
    assert second.endswith(" (cat_toy, teapot)")


# Files that are no lists

NO_LISTS = {
    b"": "expected lines of name: {key: value, ...}, or a list",
    b"3": "expected lines of name: {key: value, ...}, or a list",
    b"[]": "expected lines of name: {key: value, ...}, or a list",
    b"[1, 2]": "expected lines of name: {key: value, ...}, or a list",
    b"seed: 1\ntrain_data_dir: x": "expected lines of name: {key: value, ...}",
    b"a: {}\nb: {}\na: {}": "line 3: 'a' is given twice; rename or remove one",
    b"a: {seed: 1, seed: 2}": "line 1: 'seed' is given twice; rename or remove one",
    b"x: &x {seed: 1}\ny: {<<: *x}": "line 2: expected the keys of a concept, found <<",
    b"a: {": "not valid YAML: ",
    b"\xff\xd8\xff": "not valid YAML: ",
    b"a: !!python/object/apply:os.getpid []": "not valid YAML: ",
    b"a: {seed: !!int ''}": "not valid YAML: ",
    b"a: {seed: !!timestamp x}": "not valid YAML: ",
    b"? [a]\n: {}": "not valid YAML: ",
    b"a: " + b"[" * 5000: "not valid YAML: ",
    b"a: " + b"[" * 900 + b"]" * 900: "",
    b"a: {}\n---\nb: {}": "not valid YAML: ",
}


@pytest.mark.parametrize("text", NO_LISTS, ids=lambda text: str(text[:30]))
def test_a_file_that_is_no_list_is_told_in_one_line(write, text):
    file = write(text)
    line = line_of(load, [MODEL, f"--concepts={file}"])
    assert line.startswith(f"concepts {file}")
    rest = line.removeprefix(f"concepts {file}").lstrip(",: ")
    assert rest.startswith(NO_LISTS[text])


def test_what_is_no_file_and_no_folder_of_folders_is_told(tmp_path):
    (tmp_path / "loose.png").touch()
    (tmp_path / ".hidden").mkdir()
    expected = {
        tmp_path: "expected a folder of pictures for each concept, found none; put",
        tmp_path / "none": "no such file or folder; give a YAML file of ",
        Path("/dev/null"): "expected a file, found a device; give a YAML file of ",
    }
    for path, text in expected.items():
        line = line_of(load, [MODEL, f"--concepts={path}"])
        assert text in line and str(path) in line
    assert line_of(load, [MODEL, "--concepts="]).startswith("concepts: expected a path")


def test_values_that_grow_when_they_are_written_out_are_refused_soon(many, caplog):
    levels = "".join(
        f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    text = f"x0: &x0 [a]\n{levels}a: {{seed: *x29}}\nb: {{seed: [*x28]}}\n"
    began = time.monotonic()
    lines, _ = errors_of(caplog, many, text)
    assert time.monotonic() - began < 10
    assert len(lines) == 32


def test_too_many_concepts_are_counted_before_they_are_made(
    many, write, monkeypatch, tmp_path
):
    values = ",".join(map(str, range(400)))
    sweep = ["--sweep", f"seed={values}", f"max_train_steps=1,{values}"]
    began = time.monotonic()
    line = line_of(load, [*SINGLE, *sweep[:2], f"lr_num_cycles={values}"])
    assert line == (
        "sweep: expected at most 100000 concepts in a run, found 160000; divide them "
        "into several"
    )
    line = line_of(many, TWO, *sweep[:2], f"keep_tokens={values}")
    assert "found 320000; divide them" in line
    assert time.monotonic() - began < 5
    monkeypatch.setattr(concept_list, "MOST_CONCEPTS", 1)
    assert "found 2; divide them" in line_of(many, TWO)
    for name in "ab":
        (tmp_path / "folders" / name).mkdir(parents=True)
    line = line_of(load, [MODEL, f"--concepts={tmp_path / 'folders'}"])
    assert "found 2; divide them" in line
    assert many_keys.MOST_CONCEPTS == 100_000


# Names


def test_names_are_folders_names_on_every_system():
    for name in ("a", "cat_toy", "Red Chair", "a.b-c", "7", "猫", "console", "a-"):
        assert folder_names.is_name(name), name
    for name in (
        *("", ".", "..", ".a", "-a", "a.", "a ", " a", "a/b", "a\\b", "a:b", "a\n"),
        *("con", "CON", "nul.txt", "Lpt1.tar.gz", "a\0", "x" * 121, "猫" * 80, "a*"),
        *("index.html", "Concepts.JSON"),
    ):
        assert not folder_names.is_name(name), name
        for spaces in (False, True):
            assert folder_names.is_name(folder_names.made(name, spaces)), name


def test_numbered_names_are_each_once_whatever_their_case():
    unique = folder_names.Numbered()
    given = ["a", "A", "a-2", "a", "é", "e\N{COMBINING ACUTE ACCENT}", "x" * 120] * 2
    names = [unique(name) for name in given]
    assert names[:4] == ["a", "A-2", "a-2-2", "a-3"]
    assert len({folder_names.folded(name) for name in names}) == len(names)
    assert all(len(name) <= 120 for name in names)
