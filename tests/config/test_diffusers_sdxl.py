"""Every flag of diffusers' textual_inversion_sdxl.py, and what becomes of it here.

The names and defaults are those of its argument parser in diffusers 0.40.
"""

import logging
from typing import Any

import pytest

from ti_flax.config import diffusers_flags
from ti_flax.config.run_config import Config, load_config
from ti_flax.runtime.errors import UserError

MINE = {
    "pretrained_model_name_or_path": "sdxl",
    "train_data_dir": "pictures",
    "placeholder_token": "<cat-toy>",
    "initializer_token": "toy",
}
# Its default, which is that of the key here with `preset: diffusers`.
SAME: dict[str, Any] = {
    "save_as_full_pipeline": False,
    "num_vectors": 1,
    "revision": None,
    "variant": None,
    "learnable_property": "object",
    "output_dir": "text-inversion-model",
    "resolution": 512,
    "center_crop": False,
    "train_batch_size": 16,
    "max_train_steps": 5000,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_num_cycles": 1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "logging_dir": "logs",
    "report_to": "tensorboard",
    "num_validation_images": 4,
    "validation_steps": 100,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
}
# Its default, that of the key here, and a value that means the same in both.
OTHER_DEFAULT: dict[str, tuple[Any, Any, Any]] = {
    "seed": (None, 42, 7),  # another run each time
    "lr_warmup_steps": (500, 0, 3),  # of no effect in its own schedule, constant
    "gradient_checkpointing": (False, None, True),  # by the memory
    "mixed_precision": ("no", "auto", "bf16"),  # by the device
    "validation_prompt": (None, (), "a <cat-toy>"),
}
TOLD = {
    "repeats": "100",
    "num_train_epochs": "100",
    "dataloader_num_workers": "0",
    "use_8bit_adam": None,
    "allow_tf32": None,
    "local_rank": "-1",
    "enable_xformers_memory_efficient_attention": None,
    "save_steps": "500",
}


def load(*flags: str) -> Config:
    required = [f"--{key}={value}" for key, value in MINE.items()]
    return load_config([*required, "--preset=diffusers", *flags])


def test_no_flag_is_missing_from_these_tables():
    tables = [MINE, SAME, OTHER_DEFAULT, TOLD]
    named = [flag for table in tables for flag in table]
    assert len(named) == len(set(named)) == 46


@pytest.mark.parametrize("flag", SAME)
def test_a_default_is_its_own(flag: str):
    assert load().model_dump(mode="json").get(flag) == SAME[flag]


@pytest.mark.parametrize("flag", [*SAME, *MINE])
def test_a_flag_as_its_user_writes_it_is_the_key(flag: str, caplog):
    """A switch alone, anything else with its default."""
    value = {**SAME, **MINE}[flag]
    if value is None:
        value = {"checkpoints_total_limit": 3, "resume_from_checkpoint": "latest"}.get(
            flag, "mine"
        )
    given = [f"--{flag}"] if value is False else [f"--{flag}", str(value)]
    found = getattr(load(*given), flag)
    if flag == "hub_token":
        assert found.get_secret_value() == value
    else:
        assert str(found) == str(True if value is False else value)
    assert not caplog.records


@pytest.mark.parametrize("flag", OTHER_DEFAULT)
def test_a_default_of_our_own_gives_way_to_the_flag(flag: str):
    _, ours, given = OTHER_DEFAULT[flag]
    assert getattr(load(), flag) == ours
    written = [f"--{flag}"] if given is True else [f"--{flag}={given}"]
    # `lr_warmup_steps` is checked beside a schedule that has one.
    found = getattr(load(*written, "--lr_scheduler=linear"), flag)
    assert found == ((given,) if flag == "validation_prompt" else given)


@pytest.mark.parametrize("flag", TOLD)
def test_a_flag_without_meaning_is_told(flag: str, caplog):
    value = TOLD[flag]
    assert load(*([f"--{flag}"] if value is None else [f"--{flag}", value])) == load()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        record.getMessage() == f"{flag} is ignored: {diffusers_flags.NO_MEANING[flag]}"
    )


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--report_to=comet_ml", "'tensorboard', 'wandb', 'all' or 'none'"),
    ],
)
def test_a_value_of_its_flags_that_is_none_here_says_what_to_take(flag: str, says: str):
    with pytest.raises(UserError) as raised:
        load(flag)
    assert says in str(raised.value)


def test_it_trains_the_first_text_encoder_alone_unless_told():
    assert (load().learning_rate_te1, load().learning_rate_te2) == (None, 0.0)
    assert load("--learning_rate_te2=none").learning_rate_te2 is None


def test_the_command_of_its_readme_gives_its_settings(caplog):
    """README_sdxl.md of diffusers' example, flag by flag."""
    config = load(
        "--learnable_property=object",
        "--mixed_precision=bf16",
        "--resolution=768",
        "--train_batch_size=1",
        "--gradient_accumulation_steps=4",
        "--max_train_steps=500",
        "--learning_rate=5.0e-04",
        "--scale_lr",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        "--save_as_full_pipeline",
        "--output_dir=./textual_inversion_cat_sdxl",
    )
    assert not caplog.records
    assert config.peak_learning_rate == pytest.approx(2e-3)
    assert (config.resolution, config.max_train_steps) == (768, 500)
    assert config.mixed_precision == "bf16" and config.save_as_full_pipeline
