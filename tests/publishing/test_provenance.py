"""What a run says about its rows."""

import json

import pytest

from ti_flax.config.run_config import Config
from ti_flax.publishing import provenance

FINGERPRINTS = {"pretrained_model_name_or_path": "ab", "train_data_dir": "cd"}
# Each shapes the rows: its value in the run -> the value that is told.
SHAPING = {
    "hold_row_norm": "decay",
    "row_decay": 0.5,
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


def settings_of(**given):
    config = Config(
        pretrained_model_name_or_path="/home/ada/sd",
        train_data_dir="/home/ada/cats",
        placeholder_token="<cat>",
        **given,
    )
    return json.loads(provenance.of_run(config, {}, FINGERPRINTS, 7)["settings"])


@pytest.mark.parametrize("key", SHAPING)
def test_a_key_that_shapes_the_rows_is_told(key):
    assert settings_of(**{key: SHAPING[key]})[key] == SHAPING[key]


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
