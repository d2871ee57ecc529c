import logging
import os
from pathlib import Path

import pydantic
import pytest
import yaml

from ti_flax.config import diffusers_flags, fields, run_keys, yaml_file
from ti_flax.config.presets import PRESETS
from ti_flax.config.run_config import Config, dump_yaml, load_config
from ti_flax.runtime.errors import UserError

REQUIRED = {
    "pretrained_model_name_or_path": "sd-1-5",
    "train_data_dir": "pictures",
    "placeholder_token": "<cat-toy>",
}
REQUIRED_FLAGS = [f"--{key}={value}" for key, value in REQUIRED.items()]

# The flags of textual_inversion.py in diffusers 0.40, from its argument parser.
DIFFUSERS_FLAGS = """
    save_steps save_as_full_pipeline num_vectors pretrained_model_name_or_path revision
    variant tokenizer_name train_data_dir placeholder_token initializer_token
    learnable_property repeats output_dir seed resolution center_crop train_batch_size
    num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing
    learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles
    dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay adam_epsilon
    push_to_hub hub_token hub_model_id logging_dir mixed_precision allow_tf32 report_to
    validation_prompt num_validation_images validation_steps validation_epochs
    local_rank checkpointing_steps checkpoints_total_limit resume_from_checkpoint
    enable_xformers_memory_efficient_attention no_safe_serialization
""".split()  # noqa: SIM905
# Of its Flax and SDXL variants alone.
VARIANT_FLAGS = ["use_auth_token", "use_8bit_adam"]
# Of DreamBooth's script and of kohya's: class pictures, and how often pictures count.
OTHER_FLAGS = """
    with_prior_preservation prior_loss_weight num_class_images class_prompt
    class_data_dir reg_data_dir dataset_repeats
""".split()  # noqa: SIM905


def load(*flags):
    return load_config([*REQUIRED_FLAGS, *flags])


def load_yaml(tmp_path, text, *flags):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(["--config", str(file), *flags])


def line_of(call, *args):
    """The message of the `UserError` that the call raises: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def warnings_of(caplog):
    assert all(record.name.startswith("ti_flax.") for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


# Keys


def test_defaults_are_those_of_the_design():
    expected = {
        **REQUIRED,
        "preset": None,
        "revision": None,
        "variant": None,
        "tokenizer_name": None,
        "mixed_precision": "auto",
        "attention": "auto",
        "initializer_token": None,
        "initializer_embedding": None,
        "initializer_jitter": 0.1,
        "initializer_scale": 1.0,
        "num_vectors": 1,
        "learnable_property": "object",
        "template_file": None,
        "resolution": 512,
        "center_crop": True,
        "random_flip": True,
        "output_dir": "text-inversion-model",
        "overwrite_output_dir": False,
        "seed": 42,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "compilation_cache_dir": os.path.expanduser("~/.cache/ti_flax"),
        "profile_startup": False,
        "gradient_checkpointing": None,
        "max_train_steps": 3000,
        "learning_rate": 2e-3,
        "scale_lr": False,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "lr_num_cycles": 1,
        "lr_power": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "adam_weight_decay": 0.0,
        "max_grad_norm": None,
        "save_as_full_pipeline": False,
        "license": None,
        "push_to_hub": False,
        "hub_model_id": None,
        "hub_private_repo": False,
    }
    found = load().model_dump(mode="json")
    assert {key: found[key] for key in expected} == expected


def test_defaults_obey_their_own_limits():
    assert Config.model_validate(load().model_dump()) == load()


def test_every_key_is_described_and_in_exactly_one_group():
    grouped = [key for group in run_keys.GROUPS.values() for key in group.model_fields]
    assert grouped == list(Config.model_fields)
    assert all(field.description for field in Config.model_fields.values())


# Options of a step that came after the presets.
OFF = {
    "optimizer": "adamw",
    "hold_row_norm": None,
    "lr_scheduler": "constant",
    "snr_gamma": None,
    "stratified_timesteps": False,
}


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_preset_steps_as_the_trainer_that_it_is_named_for(preset):
    found = load(*([] if preset is None else [f"--preset={preset}"])).model_dump()
    assert {key: found[key] for key in OFF} == OFF


def test_every_preset_sets_only_keys():
    for preset in PRESETS.values():
        assert set(preset) <= set(Config.model_fields)


def test_config_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load().seed = 1


def test_constructor_forbids_unknown_keys():
    with pytest.raises(pydantic.ValidationError, match="learning_rat"):
        Config(**REQUIRED, learning_rat=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_vectors", "0", "greater than or equal to 1"),
        ("num_vectors", "1.5", "a whole number"),
        ("num_vectors", "many", "a whole number"),
        ("train_batch_size", "0", "greater than or equal to 1"),
        ("gradient_accumulation_steps", "0", "greater than or equal to 1"),
        ("max_train_steps", "0", "greater than or equal to 1"),
        ("lr_num_cycles", "0", "greater than or equal to 1"),
        ("resolution", "500", "multiple of 8"),
        ("resolution", "0", "greater than or equal to 1"),
        ("lr_warmup_steps", "-1", "greater than or equal to 0"),
        ("seed", "-1", "greater than or equal to 0"),
        ("seed", str(2**32), "less than 4294967296"),
        ("learning_rate", "0", "greater than 0"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", "inf", "finite"),
        ("lr_power", "0", "greater than 0"),
        ("adam_beta1", "1", "less than 1"),
        ("adam_beta2", "-0.1", "greater than or equal to 0"),
        ("adam_epsilon", "0", "greater than 0"),
        ("adam_weight_decay", "-0.1", "greater than or equal to 0"),
        ("initializer_jitter", "-0.1", "greater than or equal to 0"),
        ("max_grad_norm", "-1", "greater than 0"),
        ("center_crop", "maybe", "true or false"),
        ("preset", "kohya", "'diffusers'"),
        ("learnable_property", "mood", "'object' or 'style'"),
        ("lr_scheduler", "rex", "'polynomial' or 'warmup_stable_decay'"),
        ("mixed_precision", "fp8", "'auto', 'no' or 'bf16'"),
        ("revision", "", "a text that is not empty"),
        ("placeholder_token", "", "a text that is not empty"),
        ("output_dir", "", "a path"),
        ("pretrained_model_name_or_path", "", "a path"),
    ],
)
def test_value_outside_its_limits_names_key_expected_and_found(key, value, expected):
    message = line_of(load, f"--{key}={value}")
    assert message.startswith(f"{key}: expected ")
    assert expected in message
    found = message.partition(", found ")[2]
    assert value in found if value else found in ("''", "an empty text")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("num_vectors: true", "num_vectors: expected a number, found true"),
        ("learning_rate: no", "learning_rate: expected a number, found false"),
        ("max_grad_norm: on", "max_grad_norm: expected a number, found true"),
        ("revision: 12345", "revision: expected a text (numbers, yes and no need quo"),
        ("initializer_token: yes", "initializer_token: expected a text"),
        ("template_file: 3", "template_file: expected a path, found 3"),
        ("seed: null", "seed: expected a whole number, found None"),
        ("learning_rate: [1, 2]", "learning_rate: expected a number, found [1, 2]"),
        (
            "preset: [diffusers]",
            "preset: expected 'diffusers' or 'paper', found ['diffusers']",
        ),
        ("random_flip: 3", "random_flip: expected true or false, found 3"),
    ],
)
def test_yaml_value_of_a_wrong_type_names_key_expected_and_found(
    tmp_path, line, expected
):
    assert line_of(load_yaml, tmp_path, line, *REQUIRED_FLAGS).startswith(expected)


def test_several_mistakes_give_the_first_and_the_count():
    message = line_of(load, "--num_vectors=0", "--seed=x", "--learning_rate=y")
    assert message.endswith("found '0' (2 more like this)")


def test_fp16_is_answered_by_bf16_and_told_once(caplog):
    fields._tell_of_float16.cache_clear()
    for _ in range(2):
        assert load("--mixed_precision=fp16") == load("--mixed_precision=bf16")
    (message,) = warnings_of(caplog)
    assert message.startswith("mixed_precision: bf16 is taken for fp16")


@pytest.mark.parametrize("given", ["384,384", "384, 384", "384"])
def test_a_square_may_be_given_by_both_its_sides(given):
    assert load(f"--resolution={given}").resolution == 384


@pytest.mark.parametrize("given", ["384,512", "384,384,384,512", "wide", "384x384"])
def test_no_square_is_told_in_one_line(given):
    assert line_of(load, f"--resolution={given}").startswith("resolution: expected ")


def test_zero_is_no_limit_of_gradients():
    """As kohya has it."""
    for given in ("0", "0.0", "none"):
        assert load(f"--max_grad_norm={given}").max_grad_norm is None
    assert line_of(load, "--max_grad_norm=-1").startswith("max_grad_norm: expected ")


def test_two_initializers_are_refused_by_both_names():
    message = line_of(load, "--initializer_token=toy", "--initializer_embedding=a.bin")
    assert "initializer_token" in message
    assert "initializer_embedding" in message


def test_warmup_longer_than_the_run_is_refused_by_both_names():
    flags = ["--max_train_steps=100", "--lr_scheduler=linear"]
    message = line_of(load, *flags, "--lr_warmup_steps=101")
    assert "lr_warmup_steps" in message
    assert "max_train_steps" in message
    assert load(*flags, "--lr_warmup_steps=100").lr_warmup_steps == 100


@pytest.mark.parametrize(
    ("held", "told"), [([], "none"), (["clip"], "clip"), (["decay"], "decay")]
)
def test_directions_are_learned_at_a_fixed_length_alone(held, told):
    flags = [f"--hold_row_norm={kind}" for kind in held]
    assert line_of(load, "--optimizer=directional", *flags) == (
        "expected hold_row_norm initializer or median with optimizer directional, "
        f"found {told}; it learns the direction of vectors whose length is fixed"
    )
    for kind in ("initializer", "median"):
        config = load("--optimizer=directional", f"--hold_row_norm={kind}")
        assert config.directional_prior == 1e-4


def test_a_decay_that_does_not_fit_beside_the_warmup_is_refused_by_all_names():
    flags = ["--max_train_steps=100", "--lr_scheduler=warmup_stable_decay"]
    message = line_of(load, *flags, "--lr_warmup_steps=41", "--lr_decay_steps=60")
    assert message == (
        "expected lr_warmup_steps + lr_decay_steps <= max_train_steps, found 41 + 60 > "
        "100"
    )
    assert load(*flags, "--lr_warmup_steps=40", "--lr_decay_steps=60").decay_steps == 60
    assert load(*flags).decay_steps == 20
    assert load(*flags, "--lr_decay_steps=0").decay_steps == 0
    # Another schedule has no such steps, whatever their number.
    assert load("--max_train_steps=100", "--lr_decay_steps=101").decay_steps == 0


@pytest.mark.parametrize("output_dir", ["data/toy", "data", ".", "other/../data"])
def test_output_dir_that_holds_the_pictures_is_refused_by_both_names(output_dir):
    message = line_of(load, "--train_data_dir=data/toy", f"--output_dir={output_dir}")
    assert "output_dir" in message
    assert "train_data_dir" in message


@pytest.mark.parametrize("output_dir", ["data/toy/run", "data/to", "run"])
def test_output_dir_beside_or_below_the_pictures_is_accepted(output_dir):
    load("--train_data_dir=data/toy", f"--output_dir={output_dir}")


def test_warmup_without_effect_is_told(caplog):
    load("--lr_warmup_steps=500")
    (message,) = warnings_of(caplog)
    assert "lr_warmup_steps has no effect with lr_scheduler constant" in message
    caplog.clear()
    load("--lr_warmup_steps=500", "--lr_scheduler=constant_with_warmup")
    assert not caplog.records


def test_scale_lr_multiplies_by_the_examples_per_step():
    flags = ["--learning_rate=5e-4", "--train_batch_size=3"]
    flags += ["--gradient_accumulation_steps=4"]
    assert load(*flags).examples_per_step == 12
    assert load(*flags).peak_learning_rate == 5e-4
    assert load(*flags, "--scale_lr").peak_learning_rate == pytest.approx(6e-3)


def test_paths_start_at_home_after_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = load("--train_data_dir=~/toy", "--pretrained_model_name_or_path=~/sd")
    assert str(config.train_data_dir) == "/home/ada/toy"
    assert config.pretrained_model_name_or_path == "/home/ada/sd"


# Precedence


def test_command_line_wins_over_yaml_and_yaml_over_default(tmp_path):
    text = yaml.safe_dump(REQUIRED | {"seed": 1, "num_vectors": 2})
    config = load_yaml(tmp_path, text, "--seed", "7")
    assert (config.seed, config.num_vectors, config.resolution) == (7, 2, 512)


DIFFUSERS_PRESET = {
    "center_crop": False,
    "adam_weight_decay": 1e-2,
    "initializer_jitter": 0.0,
    "learning_rate": 1e-4,
    "learning_rate_te2": 0.0,
    "train_batch_size": 16,
    "max_train_steps": 5000,
}


def test_the_papers_rate_is_what_its_code_came_to():
    """0.005 x 2 GPUs x 4 pictures (Gal et al. 2022, section 4)."""
    config = load("--preset", "paper")
    assert config.peak_learning_rate == pytest.approx(0.04)
    assert (config.max_train_steps, config.train_batch_size) == (5000, 8)
    # A user's own batch has a rate of its own.
    small = load("--preset", "paper", "--train_batch_size", "4")
    assert small.peak_learning_rate == pytest.approx(0.02)


@pytest.mark.parametrize("place", ["yaml", "command line", "constructor"])
def test_preset_fills_only_keys_that_are_not_given(tmp_path, place):
    given = REQUIRED | {"max_train_steps": 3000, "adam_weight_decay": 0.0}
    if place == "yaml":
        config = load_yaml(tmp_path, yaml.safe_dump(given | {"preset": "diffusers"}))
    elif place == "command line":
        config = load_yaml(tmp_path, yaml.safe_dump(given), "--preset=diffusers")
    else:
        config = Config(**given, preset="diffusers")
    expected = DIFFUSERS_PRESET | {"max_train_steps": 3000, "adam_weight_decay": 0.0}
    assert {key: getattr(config, key) for key in expected} == expected


def test_command_line_wins_over_a_preset_in_yaml(tmp_path):
    text = yaml.safe_dump(REQUIRED | {"preset": "diffusers"})
    config = load_yaml(tmp_path, text, "--center_crop", "--learning_rate=2e-3")
    assert config.center_crop
    assert config.learning_rate == 2e-3
    assert config.train_batch_size == 16


# YAML


def test_yaml_number_without_a_point_is_a_number(tmp_path):
    assert isinstance(yaml.safe_load("5e-4"), str)  # the trap
    config = load_yaml(tmp_path, "learning_rate: 5e-4", *REQUIRED_FLAGS)
    assert config.learning_rate == 5e-4


def test_yaml_bare_no_is_a_precision(tmp_path):
    assert yaml.safe_load("no") is False  # the trap
    config = load_yaml(tmp_path, "mixed_precision: no", *REQUIRED_FLAGS)
    assert config.mixed_precision == "no"


def test_a_recipe_is_known_by_its_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A model's folder may have the name of the recipe.
    Path("cat_toy").mkdir()
    flags = ["--config", "cat_toy", "--train_data_dir", "pictures"]
    assert load_config(flags).initializer_token == "toy"
    line = line_of(load_config, ["--config", "cat_toi"])
    assert "a recipe of cat_toy, " in line and "did you mean cat_toy?" in line
    Path("style").write_text("seed: 9\n")
    given = dict(pretrained_model_name_or_path="m", placeholder_token="<cat>")
    given = [f"--{key}={value}" for key, value in given.items()]
    config = load_config(["--config", "style", "--train_data_dir", "p", *given])
    assert (config.seed, config.learnable_property) == (9, "object")


@pytest.mark.parametrize("name", yaml_file.recipes())
def test_a_recipes_file_that_is_not_there_is_answered_with_its_name(
    name, tmp_path, monkeypatch
):
    # As from a wheel, in a folder without the repository's configs/.
    monkeypatch.chdir(tmp_path)
    line = line_of(load_config, ["--config", f"configs/{name}.yaml"])
    assert line.endswith(f"--config {name}")
    assert "--config" not in line_of(load_config, ["--config", "configs/mine.yaml"])
    Path("configs").mkdir()
    Path(f"configs/{name}.yaml").write_text("seed: 9\n")
    config = load_config([f"--config=configs/{name}.yaml", *REQUIRED_FLAGS])
    assert config.seed == 9


def test_empty_yaml_gives_nothing(tmp_path):
    assert load_yaml(tmp_path, "# nothing yet\n", *REQUIRED_FLAGS) == load()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "learning_rat: 1\n",
            "unknown key 'learning_rat'; did you mean learning_rate?",
        ),
        ("zzz: 1\n", "unknown key 'zzz'; --help lists all keys"),
        ("1: 2\n", "unknown key 1; --help lists all keys"),
        ("- seed\n", "expected lines of `key: value`, found a list"),
        ("seed\n", "expected lines of `key: value`, found a str"),
        ("seed: [1,\n", "is not valid YAML"),
        ("seed: 1\n bad: 2\n", "is not valid YAML"),
        ("revision: 2024-13-45\n", "is not valid YAML"),
        ("seed: 1\nnum_vectors: 2\nseed: 3\n", "'seed' is given twice"),
        ("seed: !!python/object/apply:os.getpid []\n", "is not valid YAML"),
    ],
)
def test_faulty_yaml_is_told_in_one_line_with_its_name(tmp_path, text, expected):
    message = line_of(load_yaml, tmp_path, text, *REQUIRED_FLAGS)
    assert expected in message
    assert str(tmp_path / "config.yaml") in message


def test_yaml_that_is_not_text_is_told_in_one_line(tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0\x00")
    flag = f"--config={tmp_path / 'picture.yaml'}"
    assert "picture.yaml is not valid YAML" in line_of(load, flag)


def test_missing_file_and_folder_as_file_are_told_in_one_line(tmp_path):
    assert "No such file" in line_of(load, f"--config={tmp_path / 'none.yaml'}")
    assert "Is a directory" in line_of(load, f"--config={tmp_path}")


def test_missing_required_keys_are_all_named():
    message = line_of(load_config, ["--placeholder_token=x"])
    assert "pretrained_model_name_or_path, train_data_dir" in message
    assert "placeholder_token" not in message


def test_dump_reads_back_equal(tmp_path):
    config = Config(
        pretrained_model_name_or_path="no",
        train_data_dir="my pictures: é",
        placeholder_token="<* 猫 \U0001f431>",
        initializer_token="null",
        revision="12345",
        mixed_precision="no",
        learning_rate=5e-4,
        adam_epsilon=1e-10,
        max_grad_norm=1,
        preset="diffusers",
        center_crop=True,
    )
    assert load_yaml(tmp_path, dump_yaml(config)) == config


def test_dump_keeps_the_order_and_titles_of_the_groups():
    lines = dump_yaml(load()).splitlines()
    titles = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    assert titles == list(run_keys.GROUPS)
    written = list(yaml.safe_load("\n".join(lines)))
    fields = Config.model_fields.items()
    assert written == [key for key, field in fields if not field.exclude]


# Command line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--scale_lr"], True),
        (["--scale_lr", "true"], True),
        (["--scale_lr=True"], True),
        (["--scale_lr", "false"], False),
        (["--scale_lr", "--no_scale_lr"], False),
        (["--no-scale_lr"], False),
        (["--no_scale_lr", "--scale_lr"], True),
    ],
)
def test_switches(tmp_path, flags, expected):
    text = yaml.safe_dump(REQUIRED | {"scale_lr": not expected})
    assert load_yaml(tmp_path, text, *flags).scale_lr is expected


@pytest.mark.parametrize("text", ["none", "null", "None"])
def test_none_empties_an_optional_key_only(tmp_path, text):
    given = yaml.safe_dump(
        REQUIRED | {"max_grad_norm": 1.0, "initializer_token": "toy"}
    )
    flags = [f"--max_grad_norm={text}", f"--initializer_token={text}"]
    config = load_yaml(tmp_path, given, *flags, f"--placeholder_token={text}")
    assert config.max_grad_norm is None
    assert config.initializer_token is None
    assert config.placeholder_token == text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning-rate=1"], "did you mean --learning_rate?"),
        (["--learning_rat", "1"], "unknown flag '--learning_rat'"),
        (["--learn", "1"], "unknown flag '--learn'"),
        (["--zzz"], "--help lists all keys"),
        (["--print-config"], "did you mean --print_config?"),
        (["configs/cat_toy.yaml"], "given as --config FILE"),
        (["--seed"], "--seed: expected one argument"),
        (["--config"], "--config: expected one argument"),
    ],
)
def test_faulty_command_line_is_told_in_one_line(flags, expected):
    assert expected in line_of(load, *flags)


def test_help_is_grouped_and_shows_every_key_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python -m ti_flax.train --config cat_toy [--key value" in text
    positions = [text.index(f"\n{title}:\n") for title in run_keys.GROUPS]
    assert positions == sorted(positions)
    lines = [line.strip() for line in text.splitlines()]
    for key, field in Config.model_fields.items():
        # A long flag has its help on the next line.
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"--{key} ")]
        shown = " ".join(lines[index : index + 2])
        assert field.description in shown
        default = "(required)" if key in REQUIRED else "(default: "
        assert default in shown
    assert "(default: 0.002)" in text
    assert "--repeats" not in text


def test_print_config_prints_the_resolved_yaml_and_ends(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--preset=diffusers", "--seed=3", "--print_config")
    assert caught.value.code == 0
    assert capsys.readouterr().out == dump_yaml(load("--preset=diffusers", "--seed=3"))


# A command line of diffusers


def test_every_flag_of_other_trainers_is_known_in_exactly_one_way():
    tables = [Config.model_fields, diffusers_flags.NO_MEANING]
    assert len(DIFFUSERS_FLAGS) == 48
    for flag in DIFFUSERS_FLAGS + VARIANT_FLAGS + OTHER_FLAGS:
        assert sum(flag in table for table in tables) == 1, flag
    foreign = {*DIFFUSERS_FLAGS, *VARIANT_FLAGS, *OTHER_FLAGS}
    assert diffusers_flags.NO_MEANING.keys() <= foreign


def test_readme_command_of_diffusers_gives_its_settings(caplog):
    config = load_config(
        [
            "--pretrained_model_name_or_path=stable-diffusion-v1-5",
            "--train_data_dir=./cat",
            "--learnable_property=object",
            "--placeholder_token=<cat-toy>",
            "--initializer_token=toy",
            "--resolution=512",
            "--train_batch_size=1",
            "--gradient_accumulation_steps=4",
            "--max_train_steps=3000",
            "--learning_rate=5.0e-04",
            "--scale_lr",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            "--output_dir=textual_inversion_cat",
        ]
    )
    assert not caplog.records
    assert config.peak_learning_rate == pytest.approx(2e-3)
    assert (config.max_train_steps, config.initializer_token) == (3000, "toy")


@pytest.mark.parametrize("flag", diffusers_flags.NO_MEANING)
@pytest.mark.parametrize("value", [None, "1", "-1"])
def test_flag_without_meaning_is_ignored_with_one_line(caplog, flag, value):
    flags = [f"--{flag}"] if value is None else [f"--{flag}", value]
    assert load(*flags, "--seed=3") == load("--seed=3")
    (message,) = warnings_of(caplog)
    assert message == f"{flag} is ignored: {diffusers_flags.NO_MEANING[flag]}"
    assert caplog.records[0].levelno == logging.WARNING
    assert "\n" not in message


def test_yaml_key_without_meaning_is_ignored_with_one_line(tmp_path, caplog):
    assert load_yaml(tmp_path, "repeats: 100", *REQUIRED_FLAGS) == load()
    (message,) = warnings_of(caplog)
    assert message.startswith("repeats is ignored: ")


def test_the_hubs_token_is_in_no_text(tmp_path):
    config = load("--push_to_hub", "--hub_token=secret")
    assert config.push_to_hub and config.hub_token.get_secret_value() == "secret"
    dumped = dump_yaml(config)
    for text in (dumped, repr(config), str(config), str(config.model_dump())):
        assert "secret" not in text
    assert load_yaml(tmp_path, dumped).hub_token is None
    # Whatever it is, it is taken, since an error would show it; so do other errors.
    assert load_yaml(tmp_path, "hub_token: 1234", *REQUIRED_FLAGS).hub_token
    for wrong in ("--seed=x", "--no_such_key", "--license="):
        assert "secret" not in line_of(load, "--hub_token=secret", wrong)
    assert load("--hub_token=").hub_token is None


def test_a_file_written_when_training_was_one_group_is_read(tmp_path):
    """The keys keep their names; the titles are comments."""
    old = REQUIRED | {"seed": 7, "output_dir": "run", "mixed_precision": "bf16"}
    text = "# Model\n" + yaml.safe_dump(old) + "\n# Training\nlr_power: 2.0\n"
    config = load_yaml(tmp_path, text)
    assert (config.seed, str(config.output_dir), config.lr_power) == (7, "run", 2.0)
    assert config.mixed_precision == "bf16"
