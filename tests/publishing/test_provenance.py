"""What a run says about its rows."""

import json

import numpy as np
import pytest

from ti_flax.config.run_config import Config
from ti_flax.publishing import provenance

FINGERPRINTS = {"pretrained_model_name_or_path": "ab", "train_data_dir": "cd"}
ROWS = {
    "text_encoder": np.float32([[3, 4], [0, 1]]),
    "text_encoder_2": np.float32([[0, 0, 2], [0.5, 0, 0]]),
}
# Each shapes the rows: its value in the run -> the value that is told.
SHAPING = {
    "hold_row_norm": "decay",
    "row_decay": 0.5,
    "lr_decay_steps": 2,
    "directional_prior": 1e-3,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "lr_num_cycles": 3,
    "lr_power": 2.0,
    "learning_rate": 5e-3,
    "max_train_steps": 7,
    "train_batch_size": 3,
    "revision": "main",
}


def told_of(**given):
    config = Config(
        pretrained_model_name_or_path="/home/ada/sd",
        train_data_dir="/home/ada/cats",
        placeholder_token="<cat>",
        **given,
    )
    return provenance.of_run(config, {}, FINGERPRINTS, 7, ROWS)


def settings_of(**given):
    return json.loads(told_of(**given)["settings"])


@pytest.mark.parametrize("key", SHAPING)
def test_a_key_that_shapes_the_rows_is_told(key):
    assert settings_of(**{key: SHAPING[key]})[key] == SHAPING[key]


@pytest.mark.parametrize("kind", ["median", "initializer"])
def test_the_length_that_rows_are_held_at_is_told(kind):
    assert told_of(hold_row_norm=kind)["row_norm"] == "5 1 2 0.5"


@pytest.mark.parametrize("kind", [None, "clip", "decay"])
def test_no_length_is_told_where_it_is_free(kind):
    assert "row_norm" not in told_of(hold_row_norm=kind)


def test_nothing_of_the_machine_is_told():
    paths = {
        "output_dir": "/home/ada/run",
        "checkpoint_dir": "/home/ada/checkpoints",
        "template_file": "/home/ada/t.txt",
        "initializer_embedding": "/home/ada/cat.pt",
        "tokenizer_name": "/home/ada/tokenizer",
        "hub_token": "/home/ada",
    }
    told = settings_of(**paths)
    assert "/home/ada" not in json.dumps(told)
    assert not set(paths) & set(told)
