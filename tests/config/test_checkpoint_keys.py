"""What a model's files do not say: the keys, and kohya's name for one of them."""

import pytest

from ti_flax import generate
from ti_flax.checkpoints import identity
from ti_flax.config import generate_keys, run_config, validation
from ti_flax.config.natures import TRAVELS, keys_of
from ti_flax.runtime.errors import UserError

RUN = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "placeholder_token": "<toy>",
    "initializer_token": "toy",
}
PICTURE = {"model": "model.safetensors", "prompt": "a toy"}


def load(**given):
    argv = [f"--{key}={value}" for key, value in {**RUN, **given}.items()]
    return run_config.load_config(argv)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, None),
        ({"v_parameterization": "true"}, "v_prediction"),
        ({"v_parameterization": True}, "v_prediction"),
        ({"v_parameterization": "false"}, "epsilon"),
        ({"v_parameterization": "none"}, None),
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"v_parameterization": 1, "prediction_type": "v_prediction"}, "v_prediction"),
        ({"v_parameterization": 0, "prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_kohyas_name_is_one_for_prediction_type(given, said):
    config = load(**given)
    assert config.prediction_type == said
    # One of the two is kept, so that runs of either name are one another's.
    assert config.v_parameterization is None


def test_it_is_kohyas_switch_as_well():
    argv = [f"--{key}={value}" for key, value in RUN.items()]
    config = run_config.load_config([*argv, "--v_parameterization"])
    assert config == load(prediction_type="v_prediction")
    fingerprints = {identity.config_fingerprint(each) for each in (config, load())}
    assert len(fingerprints) == 2


def test_generate_knows_the_same_keys():
    for given in ({"v_parameterization": True}, {"prediction_type": "v_prediction"}):
        keys = validation.validate(
            generate_keys.GenerateKeys, {**PICTURE, **given}, "with --key value"
        )
        assert keys.prediction_type == "v_prediction"


def test_the_command_hands_on_what_it_means():
    argv = [f"--{key}={value}" for key, value in PICTURE.items()]
    _, keys = generate.command._read([*argv, "--output=o", "--v_parameterization"])
    assert keys["prediction_type"] == "v_prediction"
    assert keys.keys() == {
        *PICTURE,
        "output",
        "prediction_type",
        "v_parameterization",
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"v_parameterization": "true", "prediction_type": "epsilon"},
            "expected prediction_type or v_parameterization, found both ('epsilon', "
            "true); remove one",
        ),
        ({"v_parameterization": "maybe"}, "v_parameterization: expected true or false"),
        ({"prediction_type": "sample"}, "prediction_type: expected 'epsilon' or"),
        ({"rescale_betas_zero_snr": "2"}, "rescale_betas_zero_snr: expected true or"),
        ({"ema": "x"}, "ema: expected true or false"),
        ({"vae": ""}, "vae: expected a path, found an empty text"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(given, told):
    with pytest.raises(UserError) as raised:
        load(**given)
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_what_changes_the_rows_travels_with_them():
    travelling = {"ema", "prediction_type", "rescale_betas_zero_snr"}
    assert travelling <= keys_of(run_config.Config, [TRAVELS]).keys()
