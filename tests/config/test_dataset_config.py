"""kohya's dataset.toml: the keys that it becomes, and a line for what is none."""

import json
import logging
import os

import pytest
import yaml

from ti_flax.config import dataset_config, dataset_options
from ti_flax.config.run_config import Config, dump_yaml, load_config
from ti_flax.runtime.errors import UserError

MODEL = ["--pretrained_model_name_or_path=sd", "--placeholder_token=<toy>"]

# The options of sd-scripts' own schema (library/config_util.py, 48d368f).
SD_SCRIPTS = """
    color_aug face_crop_aug_range flip_aug num_repeats random_crop shuffle_caption
    keep_tokens keep_tokens_separator secondary_separator caption_separator
    enable_wildcard token_warmup_min token_warmup_step caption_prefix caption_suffix
    custom_attributes resize_interpolation caption_dropout_every_n_epochs
    caption_dropout_rate caption_tag_dropout_rate caption_extension class_tokens
    cache_info image_dir is_reg alpha_mask metadata_file conditioning_data_dir
    batch_size bucket_no_upscale bucket_reso_steps enable_bucket max_bucket_reso
    min_bucket_reso validation_seed validation_split resolution network_multiplier
    debug_dataset max_token_length prior_loss_weight
""".split()  # noqa: SIM905

REALISTIC = r"""
# A file as people have it
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1
color_aug = false
cache_info = false

[[datasets]]
resolution = [768, 768]
batch_size = 4
enable_bucket = true
min_bucket_reso = 256
max_bucket_reso = 1024
bucket_reso_steps = 32
bucket_no_upscale = true
keep_tokens = 2
caption_prefix = "photo, {},"
caption_suffix = ", from side"
keep_tokens_separator = "|||"
caption_separator = ";"
caption_dropout_rate = 0.1
caption_tag_dropout_rate = 0.2
enable_wildcard = true

  [[datasets.subsets]]
  image_dir = '/sets/my [v1] cat/face shots'
  num_repeats = 10
  flip_aug = false
  random_crop = true

  [[datasets.subsets]]
  image_dir = '/sets/my [v1] cat/2_body/far'
  flip_aug = false
  random_crop = true
  keep_tokens = 2
"""
KEYS = {
    "train_data_dir": "/sets/my [v1] cat",
    "subsets": ["10:face shots", "2_body/far"],
    "caption_source": "txt",
    "shuffle_caption": True,
    "keep_tokens": 2,
    "resolution": 768,
    "train_batch_size": 4,
    "enable_bucket": True,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "bucket_reso_steps": 32,
    "bucket_no_upscale": True,
    "caption_prefix": "photo, {},",
    "caption_suffix": ", from side",
    "keep_tokens_separator": "|||",
    "caption_separator": ";",
    "caption_dropout_rate": 0.1,
    "caption_tag_dropout_rate": 0.2,
    "enable_wildcard": True,
    "random_flip": False,
    "random_crop": True,
}


@pytest.fixture
def write(tmp_path):
    def file(text, name="my dataset.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return file


@pytest.fixture
def read(write):
    return lambda text: dataset_config.read(write(text))


def one(*lines, general="", dataset="", more=""):
    """A file with one subset, and further ones."""
    return "\n".join(
        [
            *("[general]", general, "[[datasets]]", dataset, "[[datasets.subsets]]"),
            *("image_dir = 'cat'", *lines, more),
        ]
    )


def another(*lines):
    return "\n".join(["[[datasets.subsets]]", "image_dir = 'dog'", *lines])


def warnings_of(caplog):
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    messages = [record.getMessage() for record in caplog.records]
    assert all(m.startswith("dataset_config: ") and "\n" not in m for m in messages)
    return messages


def test_every_option_of_sd_scripts_is_known_in_exactly_one_way():
    tables = (
        dataset_options.SAME,
        dataset_options.OWN_RULE,
        dataset_options.NO_MEANING,
    )
    for name in SD_SCRIPTS:
        assert sum(name in table for table in tables) == 1, name
    for name in dataset_options.SAME:
        assert dataset_options.RENAMED.get(name, name) in Config.model_fields
    assert sum(map(len, tables)) == len(dataset_options.OPTIONS)


def test_a_file_as_people_have_it_gives_its_keys(read, write, caplog):
    assert read(REALISTIC) == KEYS
    given = [*MODEL, f"--dataset_config={write(REALISTIC)}"]
    config = load_config(given)
    assert not caplog.records
    plain = [f"--{k}={v}" for k, v in KEYS.items() if k != "subsets"]
    assert config == load_config([*MODEL, *plain, "--subsets", *KEYS["subsets"]])
    # What the file does not name stays as it is here.
    untouched = load_config([*MODEL, "--train_data_dir=x"]).model_dump()
    for key, value in config.model_dump().items():
        assert key in KEYS or value == untouched[key], key
    assert config.folders == (("face shots", 10), ("2_body/far", 1))
    assert "dataset_config" not in dump_yaml(config)


def test_print_config_prints_the_keys_that_it_became(write, capsys):
    with pytest.raises(SystemExit):
        load_config([*MODEL, f"--dataset_config={write(REALISTIC)}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {key: printed[key] for key in KEYS} == KEYS
    assert Config(**printed).folders[0] == ("face shots", 10)


def test_help_lists_it(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    assert "--dataset_config FILE" in capsys.readouterr().out


def test_preset_file_yaml_and_command_line_win_in_that_order(write, tmp_path):
    file = write(one("keep_tokens = 2", dataset="batch_size = 3\nresolution = 64"))
    lines = {"preset": "diffusers", "resolution": 128, "dataset_config": str(file)}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(lines))
    given = [*MODEL, f"--config={tmp_path / 'c.yaml'}"]
    config = load_config([*given, "--keep_tokens=4"])
    assert config.train_batch_size == 3  # the preset has 16
    assert config.resolution == 128
    assert config.keep_tokens == 4
    assert config.max_train_steps == 5000  # the preset's
    assert str(config.train_data_dir) == "cat"
    # Of two files the command line's, and none of them with none.
    other = write(one(dataset="batch_size = 7"), "other.toml")
    assert load_config([*given, f"--dataset_config={other}"]).train_batch_size == 7
    without = load_config([*given, "--dataset_config=none", "--train_data_dir=x"])
    assert without.train_batch_size == 16


def test_a_folder_that_is_given_is_read_in_place_of_the_files(write, caplog):
    file = write(one("num_repeats = 2", more=another()))
    config = load_config([*MODEL, f"--dataset_config={file}", "--train_data_dir=mine"])
    assert (str(config.train_data_dir), config.subsets) == ("mine", ())
    (message,) = warnings_of(caplog)
    assert "image_dir and num_repeats are not read" in message


# image_dir and num_repeats of each subset -> train_data_dir, subsets.
FOLDERS = {
    "one": ([("cat", 1)], "cat", None),
    "one that counts": ([("10_cat/", 9)], "10_cat", None),
    "beside each other": ([("a", 3), ("b", 1)], ".", ["3:a", "b"]),
    "a common parent": ([("s/a", 1), ("./s/b/c", 2)], "s", ["a", "2:b/c"]),
    "one inside the other": ([("s", 1), ("s/in", 5)], "s", [".", "5:in"]),
    "whole paths": ([("/x/a", 1), ("/x/b", 1)], "/x", ["a", "b"]),
    "of the root": ([("/a", 1), ("/b", 1)], "/", ["a", "b"]),
    "alike beginnings": ([("/x/ab", 1), ("/x/a", 1)], "/x", ["ab", "a"]),
    "a number in front": ([("3:4", 1), ("5_b", 1)], ".", ["1:3:4", "5_b"]),
    "zero times": ([("a", 0), ("b", 1)], "b", None),
    "twice in a data set": ([("a", 3), ("a/", 4)], "a", None),
    "brackets": ([("s [1]/a b", 2), ("s [1]/c", 1)], "s [1]", ["2:a b", "c"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_and_how_often_they_count(name, read):
    given, parent, subsets = FOLDERS[name]
    tables = [
        f"[[datasets.subsets]]\nimage_dir = '{folder}'\nnum_repeats = {count}"
        for folder, count in given
    ]
    keys = read("\n".join(["[[datasets]]", *tables]))
    expected = {"train_data_dir": parent} | ({"subsets": subsets} if subsets else {})
    assert keys == expected
    config = Config(pretrained_model_name_or_path="x", placeholder_token="y", **keys)
    assert config.subsets == tuple(subsets or ())


def test_paths_out_of_the_current_folder_are_whole_ones(read, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    keys = read(one(more=another()).replace("'dog'", "'../dog'"))
    assert keys == {"train_data_dir": os.getcwd()[:-3], "subsets": ["in/cat", "dog"]}
    monkeypatch.setenv("HOME", "/home/me")
    keys = read(one(more=another()).replace("'dog'", "'~/d'").replace("'cat'", "'~'"))
    assert keys == {"train_data_dir": "/home/me", "subsets": [".", "d"]}


def test_a_folder_of_two_data_sets_counts_for_both(read):
    text = "".join(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir='{name}'\nnum_repeats = 2\n"
        for name in ("a", "b", "a")
    )
    assert read(text)["subsets"] == ["4:a", "2:b"]


# A file -> the keys that it gives besides train_data_dir.
TRANSLATED = {
    "one side": (one(dataset="resolution = 640"), {"resolution": 640}),
    "a dataset before general": (
        one(general="keep_tokens = 1", dataset="keep_tokens = 2"),
        {"keep_tokens": 2},
    ),
    "a subset before its dataset": (
        one("keep_tokens = 3", dataset="keep_tokens = 2"),
        {"keep_tokens": 3},
    ),
    "captions": (one("caption_extension = '.caption'"), {"caption_source": "caption"}),
    "alpha": (one("alpha_mask = true"), {"alpha_mask": True, "masked_loss": True}),
    "no alpha": (one("alpha_mask = false"), {"alpha_mask": False}),
    "masks": (
        one("conditioning_data_dir = 'masks/'"),
        {"masked_loss": True, "conditioning_data_dir": "masks"},
    ),
    "metadata": (one("metadata_file = 'cat/meta.json'"), {"caption_source": "json"}),
    "metadata before an ending": (
        one("metadata_file = './cat/x.JSON'", general="caption_extension = '.cap'"),
        {"caption_source": "json"},
    ),
    "empty texts": (
        one('caption_prefix = ""', 'caption_suffix = ""', 'secondary_separator = ""'),
        {},
    ),
    "silence": (one(), {}),
    "a byte order mark": ("\N{BOM}" + one("keep_tokens = 3"), {"keep_tokens": 3}),
}


@pytest.mark.parametrize("name", TRANSLATED)
def test_options_become_keys(name, read, caplog):
    text, expected = TRANSLATED[name]
    keys = read(text)
    assert keys == {"train_data_dir": "cat"} | expected
    assert not caplog.records
    Config(pretrained_model_name_or_path="x", placeholder_token="y", **keys)


# conditioning_data_dir of the subsets cat and dog -> the key.
MASKS = {
    "one": ("masks", "masks/", "masks"),
    "as the pictures": ("masks/cat", "masks/dog", "masks"),
    "beside them": ("cat", "dog", "."),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_two_folders(name, read):
    first, second, expected = MASKS[name]
    line = "conditioning_data_dir = '{}'".format
    keys = read(one(line(first), more=another(line(second))))
    assert keys["conditioning_data_dir"] == expected and keys["masked_loss"] is True


def test_json_is_read_as_well(write):
    content = {"datasets": [{"batch_size": 2, "subsets": [{"image_dir": "a"}]}]}
    keys = dataset_config.read(write(json.dumps(content), "d.JSON"))
    assert keys == {"train_data_dir": "a", "train_batch_size": 2}


def test_pictures_of_the_class_are_left_out_and_told(read, caplog):
    regular = another("is_reg = true", "keep_tokens = 9", "metadata_file = 'x'")
    assert read(one("keep_tokens = 1", more=regular)) == {
        "train_data_dir": "cat",
        "keep_tokens": 1,
    }
    (message,) = warnings_of(caplog)
    assert "is_reg pictures (dog) are left out" in message
    assert "the gradient to its vectors is zero" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (one("num_repeats = 0", more=another()), "cat is left out: num_repeats is 0"),
        (one("num_repeats = -1", more=another()), "num_repeats is -1"),
        (
            one(more=another().replace("dog", "./cat")),
            "cat is left out: its dataset has it already",
        ),
    ],
)
def test_what_sd_scripts_passes_over_is_left_out_and_told(text, expected, read, caplog):
    assert "subsets" not in read(text)
    (message,) = warnings_of(caplog)
    assert message.endswith(expected)


# A value that would do something there, of each option without a key.
TOLD = {
    "class_tokens": "'sks cat'",
    "color_aug": "true",
    "face_crop_aug_range": "[1.0, 3]",
    "token_warmup_min": "2",
    "token_warmup_step": "0.5",
    "secondary_separator": "';;;'",
    "caption_dropout_every_n_epochs": "3",
    "resize_interpolation": "'area'",
    "custom_attributes": "{ a = 1 }",
    "network_multiplier": "0.5",
    "validation_seed": "7",
    "validation_split": "0.1",
    "cache_info": "true",
    "cache_latents": "true",
    "cache_latents_to_disk": "true",
    "skip_cache_check": "true",
    "max_token_length": "225",
    "prior_loss_weight": "0.5",
    "debug_dataset": "true",
}


def test_no_option_without_a_key_is_missed():
    assert TOLD.keys() == dataset_options.NO_MEANING.keys()


@pytest.mark.parametrize("name", TOLD)
def test_an_option_without_a_key_is_told_once(name, read, caplog):
    # Of two subsets.
    line = f"{name} = {TOLD[name]}"
    assert read(one(general=line, more=another())).keys() == {
        "train_data_dir",
        "subsets",
    }
    (message,) = warnings_of(caplog)
    reason = dataset_options.NO_MEANING[name][1]
    assert message == f"dataset_config: {name} is ignored: {reason}"


@pytest.mark.parametrize("name", TOLD)
def test_an_option_that_does_nothing_there_needs_no_line(name, read, caplog):
    default = dataset_options.OPTIONS[name].default
    if default is not None:
        text = json.dumps(default) if default != {} else "{}"
        read(one(general=f"{name} = {text}"))
    assert not caplog.records


WRONG = {
    "a misspelt option": (
        one("keep_token = 1"),
        "subset 1: unknown option 'keep_token'; did you mean keep_tokens?",
    ),
    "an unknown option": (one("zzz = 1"), "unknown option 'zzz'; docs/data.md says"),
    "a key of ours": (
        one("placeholder_token = 'x'"),
        "unknown option 'placeholder_token'",
    ),
    "an unknown table": (
        "[genral]\n" + one(),
        "unknown table 'genral'; did you mean general?",
    ),
    "loose options": (
        "resolution = 512\n" + one(),
        "unknown table 'resolution'; expected [general] and [[datasets]]",
    ),
    "a data set's option in a subset": (
        one("resolution = 512"),
        "resolution is no option of [[datasets.subsets]]; move it to [general] "
        "or [[datasets]]",
    ),
    "a subset's option in general": (
        one(general="is_reg = true"),
        "is_reg is no option of [general]; move it to [[datasets.subsets]]",
    ),
    "no square": (
        one(dataset="resolution = [512, 768]"),
        "expected a square, found [512, 768]; give one side, and enable_bucket = true",
    ),
    "three sides": (
        one(dataset="resolution = [1, 2, 3]"),
        "expected a whole number, or width and height in brackets, found [1, 2, 3]",
    ),
    "a side in quotes": (one(dataset="resolution = '512'"), "found '512'"),
    "a word for a number": (
        one("keep_tokens = 'many'"),
        "keep_tokens: expected a whole number, found 'many'",
    ),
    "a switch for a number": (
        one("keep_tokens = true"),
        "keep_tokens: expected a whole number, found True",
    ),
    "a number for a switch": (
        one("flip_aug = 1"),
        "flip_aug: expected true or false, found 1",
    ),
    "a date": (one("flip_aug = 1979-05-27"), "flip_aug: expected true or false"),
    "a list for a text": (
        one("caption_prefix = ['a']"),
        "caption_prefix: expected a text, found ['a']",
    ),
    "an empty path": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = ''",
        "image_dir: expected a path, found ''",
    ),
    "a path with a NUL": (
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a\\u0000"',
        "image_dir: expected a path",
    ),
    "too many repeats": (
        one(f"num_repeats = {10**10}"),
        "num_repeats: expected a whole number of at most 1000000000",
    ),
    "no folder": (
        "[[datasets]]\n[[datasets.subsets]]",
        "[[datasets]] 1, subset 1: expected image_dir, found none",
    ),
    "metadata alone": (
        "[[datasets]]\n[[datasets.subsets]]\nmetadata_file = 'a.json'",
        "expected image_dir, found none",
    ),
    "nothing": ("", "expected [[datasets]] with a [[datasets.subsets]] of pictures"),
    "no subset": ("[[datasets]]", "of pictures to learn from, found none"),
    "class pictures alone": (
        one("is_reg = true"),
        "of pictures to learn from, found none",
    ),
    "datasets as a table": (
        "[datasets]\nresolution = 1",
        "expected datasets as a list of tables",
    ),
    "subsets as a table": (
        "[[datasets]]\n[datasets.subsets]\nimage_dir = 'a'",
        "expected subsets as a list of tables",
    ),
    "a list of other things": (
        "datasets = [1]",
        "expected datasets as a list of tables, found [1]",
    ),
    "general as a list": ("[[general]]\n" + one(), "not valid TOML"),
    "general as a text": ("general = 'x'", "expected [general] as a table, found 'x'"),
    "two values": (
        one("keep_tokens = 1", more=another("keep_tokens = 2")),
        "keep_tokens: expected one value for all pictures of a run, found 1 "
        "for cat and 2 for dog; make them equal",
    ),
    "a value and silence": (
        one("flip_aug = true", more=another()),
        "flip_aug: expected one value for all pictures of a run, found True "
        "for cat and False (not given) for dog",
    ),
    "two endings": (
        one("caption_extension = '.txt'", more=another()),
        "found '.txt' for cat and '.caption' (not given) for dog",
    ),
    "two data sets": (
        one(
            dataset="resolution = 512",
            more="[[datasets]]\nresolution = 768\n" + another(),
        ),
        "resolution: expected one value for all pictures of a run, found 512 "
        "for cat and 768 for dog",
    ),
    "two batches": (
        one(dataset="batch_size = 2", more="[[datasets]]\n" + another()),
        "found 2 for cat and 1 (not given) for dog",
    ),
    "another ending": (
        one("caption_extension = '.cap'"),
        "caption_extension: expected .txt or .caption, found '.cap'; rename",
    ),
    "metadata elsewhere": (
        one("metadata_file = 'elsewhere/m.json'"),
        "metadata_file: expected a .json file in cat, the folder above all "
        "pictures, found elsewhere/m.json",
    ),
    "metadata of another ending": (
        one("metadata_file = 'cat/m.txt'"),
        "metadata_file: expected a .json file in cat",
    ),
    "two metadata files": (
        one(
            "metadata_file = 'cat/m.json'", more=another("metadata_file = 'dog/m.json'")
        ),
        "for dog; merge them into one file in the folder above",
    ),
    "metadata of one": (
        one("metadata_file = 'cat/m.json'", more=another()),
        "found 'cat/m.json' for cat and none for dog",
    ),
    "masks of one": (
        one("conditioning_data_dir = 'm'", more=another()),
        "conditioning_data_dir: expected one folder, or those of one with the "
        "sub-folders of the pictures, found m, none; put",
    ),
    "masks of two": (
        one("conditioning_data_dir = 'm'", more=another("conditioning_data_dir = 'n'")),
        "found m, n; put",
    ),
    "no TOML": ("[[datasets", "not valid TOML: "),
    "an option twice": (
        one("keep_tokens = 1", "keep_tokens = 1"),
        "not valid TOML: Cannot overwrite a value",
    ),
    "a backslash in double quotes": (
        one('metadata_file = "C:\\hoge"'),
        "not valid TOML: ",
    ),
    "deep": ("a = " + "[" * 9999, "not valid TOML: "),
    "a long number": (one("keep_tokens = " + "9" * 5000), "not valid TOML: "),
    "long": ("#" * (2**20 + 1), "has 1048577 bytes, expected at most 1048576"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_that_names_the_file(name, read):
    text, expected = WRONG[name]
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert expected in message
    assert "my dataset.toml" in message
    assert "\n" not in message and len(message) < 700


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "expected a file, found a folder"),
        (os.mkfifo, "expected a file, found a pipe"),
        (lambda path: path.write_bytes(b"\xff\xfe\0"), "not valid TOML"),
    ],
)
def test_what_is_no_file_of_text_is_told(make, expected, tmp_path):
    make(tmp_path / "d.toml")
    with pytest.raises(UserError, match=expected):
        dataset_config.read(tmp_path / "d.toml")


@pytest.mark.parametrize("value", [3, ["a"], True, ""])
def test_yaml_that_names_no_file_is_told(value, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"dataset_config": value}))
    with pytest.raises(UserError, match="dataset_config: expected a path, found"):
        load_config([*MODEL, f"--config={tmp_path / 'c.yaml'}"])


def test_a_value_out_of_its_range_is_told_as_that_of_the_key(write):
    file = write(one(dataset="batch_size = 0"))
    with pytest.raises(UserError, match="train_batch_size: expected greater than"):
        load_config([*MODEL, f"--dataset_config={file}"])
