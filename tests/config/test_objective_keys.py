"""Keys of the loss and the noise: names, defaults, what does not go together."""

import pytest

from ti_flax.checkpoints import identity
from ti_flax.config import run_config
from ti_flax.runtime.errors import UserError

RUN = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "placeholder_token": "<toy>",
    "initializer_token": "toy",
}
# As the programs have them that the names are from, all off.
DEFAULTS = {
    "snr_gamma": None,
    "min_snr_gamma": None,
    "debiased_estimation_loss": False,
    "scale_v_pred_loss_like_noise_pred": False,
    "loss_type": "l2",
    "huber_schedule": "snr",
    "huber_c": 0.1,
    "noise_offset": 0.0,
    "multires_noise_iterations": 0,
    "multires_noise_discount": 0.3,
    "ip_noise_gamma": 0.0,
    "min_timestep": 0,
    "max_timestep": None,
    "timestep_bias_strategy": "none",
    "timestep_bias_multiplier": 1.0,
    "timestep_bias_begin": 0,
    "timestep_bias_end": None,
    "timestep_bias_portion": 0.25,
}


def load(**given):
    argv = [f"--{key}={value}" for key, value in {**RUN, **given}.items()]
    return run_config.load_config(argv)


def test_every_option_is_off_unless_it_is_asked_for():
    values = load().model_dump()
    assert {key: values[key] for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("given", "gamma"),
    [
        ({}, None),
        ({"snr_gamma": 5}, 5.0),
        ({"min_snr_gamma": "5"}, 5.0),
        ({"min_snr_gamma": 5, "snr_gamma": "5.0"}, 5.0),
        ({"min_snr_gamma": "none"}, None),
        ({"min_snr_gamma": "none", "snr_gamma": 1}, 1.0),
        ({"min_snr_gamma": 1, "snr_gamma": "none"}, 1.0),
    ],
)
def test_kohyas_gamma_is_that_of_diffusers(given, gamma):
    config = load(**given)
    assert (config.snr_gamma, config.min_snr_gamma) == (gamma, None)
    again = run_config.Config.model_validate(config.model_dump())
    assert again == config
    same = identity.config_fingerprint(load(snr_gamma=gamma or "none"))
    assert identity.config_fingerprint(config) == same


@pytest.mark.parametrize("key", [*DEFAULTS])
def test_a_resumed_run_keeps_each_of_them(key):
    changed = {
        "snr_gamma": 5,
        "min_snr_gamma": 5,
        "debiased_estimation_loss": True,
        "scale_v_pred_loss_like_noise_pred": True,
        "loss_type": "huber",
        "huber_schedule": "constant",
        "max_timestep": 900,
        "timestep_bias_strategy": "later",
        "timestep_bias_end": 500,
    }
    value = changed.get(key, 1)
    if value == DEFAULTS[key]:
        value = 2
    ours, others = load(**{key: value}), load()
    assert identity.config_fingerprint(ours) != identity.config_fingerprint(others)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"snr_gamma": 5, "min_snr_gamma": 1},
            "expected snr_gamma or min_snr_gamma, which is kohya's name for it, found "
            "both (5, 1); remove one",
        ),
        (
            {"min_snr_gamma": 5, "debiased_estimation_loss": True},
            "expected snr_gamma or debiased_estimation_loss, found both (5, true); "
            "each says what a timestep counts, remove one",
        ),
        (
            {"min_timestep": 900, "max_timestep": 900},
            "expected min_timestep < max_timestep, found 900 and 900; max_timestep is "
            "the first that is not drawn",
        ),
        (
            {
                "timestep_bias_strategy": "range",
                "timestep_bias_begin": 500,
                "timestep_bias_end": 200,
            },
            "expected timestep_bias_begin < timestep_bias_end, found 500 and 200; the "
            "end is the first after the range",
        ),
        (
            {"timestep_bias_portion": 0},
            "timestep_bias_portion: expected greater than 0, found '0'",
        ),
        (
            {"timestep_bias_portion": 1.5},
            "timestep_bias_portion: expected less than or equal to 1, found '1.5'",
        ),
        (
            {"multires_noise_iterations": 6, "multires_noise_discount": 2},
            "multires_noise_discount: expected less than or equal to 1, found '2'",
        ),
        ({"min_snr_gamma": 0}, "min_snr_gamma: expected greater than 0, found '0'"),
        (
            {"min_snr_gamma": 5, "snr_gamma": "five"},
            "snr_gamma: expected a number, found 'five'",
        ),
        (
            {"loss_type": "l3"},
            "loss_type: expected 'l2', 'huber' or 'smooth_l1', found 'l3'",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(given, told):
    with pytest.raises(UserError) as caught:
        load(**given)
    assert str(caught.value) == told


def test_begin_and_end_matter_with_a_range_alone():
    assert load(timestep_bias_begin=500, timestep_bias_end=200).timestep_bias_end == 200
