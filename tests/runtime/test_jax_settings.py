"""A run is a function of its configuration, whatever JAX's surroundings say."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax.runtime import hosts, jax_settings, log
from ti_flax.runtime.errors import UserError
from ti_flax.step import dispatch


@jax_settings.fixed()
def learned_rows():
    """Rows after two steps; keys are made from the seed inside, as a run's are."""
    recipe = slots.make_recipe(batch=2)
    concept = slots.Concept(seed=1, pictures=2, prompts=3, vectors=1)
    state, bank = slots.make_run(recipe, concept)
    frozen = slots.make_frozen(recipe)
    state, _ = dispatch.compile_train_steps(recipe)(state, frozen, bank, 2)
    return np.asarray(state.rows["text_encoder"])


@pytest.fixture(scope="module")
def usual():
    return learned_rows()


# Together, as each of them compiles a step anew; those that hide one another apart.
@pytest.mark.parametrize(
    "settings",
    [
        {
            "jax_default_prng_impl": "rbg",
            "jax_enable_x64": True,
            "jax_numpy_dtype_promotion": "strict",
            "jax_default_matmul_precision": "bfloat16",
            "jax_numpy_rank_promotion": "raise",
            "jax_legacy_prng_key": "error",
        },
        {
            "jax_threefry_partitionable": False,
            "jax_random_seed_offset": 7,
            "jax_default_matmul_precision": "highest",
        },
        pytest.param({"jax_default_prng_impl": "unsafe_rbg"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: f"{len(settings)} settings",
)
def test_rows_are_the_same_under_every_setting(settings, usual):
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        with log.heard_warnings() as heard:
            np.testing.assert_array_equal(learned_rows(), usual)
        for name, value in settings.items():
            assert getattr(jax.config, name) == value  # the caller's again
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    for name, value in settings.items():
        matters = name in jax_settings._FIXED
        assert (f"{name}={value}" in "".join(heard)) == matters


def test_usual_settings_are_not_warned_of():
    with log.heard_warnings() as heard, jax_settings.fixed():
        assert jnp.arange(2).dtype == np.int32
    assert not heard


def test_settings_come_back_after_an_error():
    jax.config.update("jax_random_seed_offset", 3)
    try:
        with pytest.raises(ZeroDivisionError), jax_settings.fixed():
            assert jax.config.jax_random_seed_offset == 0
            raise ZeroDivisionError
        assert jax.config.jax_random_seed_offset == 3
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize("asked", ["tpu", "cuda", "gpu", "nonsense", ""])
def test_a_backend_that_cannot_be_had_is_a_users_error(monkeypatch, asked):
    def fail():
        raise RuntimeError("Unable to initialize backend: in use by pid 7")

    monkeypatch.setattr(jax, "devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", asked)
    monkeypatch.setattr(jax_settings, "_is_cpu_only", lambda: False)
    try:
        with pytest.raises(UserError, match=r"in use by pid 7.*JAX_PLATFORMS") as told:
            jax_settings.require_devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert asked in str(told.value)


@pytest.mark.parametrize(
    ("libtpu", "tpu", "variables", "devices", "cpu"),
    [
        (True, False, {}, [], True),
        (False, False, {}, [], False),
        (True, True, {}, [], False),
        (True, False, {"TPU_NAME": "a"}, [], False),
        (True, False, {"TPU_WORKER_HOSTNAMES": "a"}, [], False),
        (True, False, {"TPU_WORKER_HOSTNAMES": "WARNING: unknown"}, [], True),
        (True, False, {}, ["/dev/nvidia0"], False),
    ],
)
def test_a_tpu_or_gpu_is_never_hidden(
    monkeypatch, libtpu, tpu, variables, devices, cpu
):
    find = jax_settings.importlib.util
    monkeypatch.setattr(find, "find_spec", lambda name: "there" if libtpu else None)
    monkeypatch.setattr(hosts, "has_tpu", lambda: tpu)
    monkeypatch.setattr(jax_settings.glob, "glob", lambda pattern: devices)
    for name in jax_settings._TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert jax_settings._is_cpu_only() == cpu


@pytest.mark.parametrize(
    "asked",
    [
        *("cuda", "nonsense"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpu", "rocm")),
    ],
)
def test_an_absent_backend_is_one_line(asked):
    code = (
        "from ti_flax.runtime import errors, jax_settings\n"
        "errors.run(jax_settings.fixed()(lambda: None))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": asked},
    )
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: JAX has no device (")
    assert f"JAX_PLATFORMS is {asked}: unset it" in line
