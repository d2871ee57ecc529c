"""Every number that a user may give has a largest value, told in one line."""

import ast
import importlib
from typing import get_args

import annotated_types
import pytest
from test_imports import MODULES

from ti_flax.config import validation
from ti_flax.config.fields import Settings
from ti_flax.config.run_config import Config
from ti_flax.runtime.errors import UserError

INT32 = 2**31


def settings_of_the_source():
    """Names of classes of keys, by the module that has them."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Keys"):
                yield f"ti_flax.{module}", node.name


CLASSES = [
    getattr(importlib.import_module(module), name)
    for module, name in settings_of_the_source()
] + [Config]


def kind_of(field):
    kinds = get_args(field.annotation) or (field.annotation,)
    return float if float in kinds else int if int in kinds else None


def limits(field):
    """The smallest and the largest value; of float or int."""
    low = high = None
    step = 1 if kind_of(field) is int else 1e-9
    for mark in field.metadata:
        if isinstance(mark, annotated_types.Ge):
            low = mark.ge
        elif isinstance(mark, annotated_types.Gt):
            low = mark.gt + step
        elif isinstance(mark, annotated_types.Le):
            high = mark.le
        elif isinstance(mark, annotated_types.Lt):
            high = mark.lt - step
    return low, high


NUMBERS = {
    f"{settings.__module__}.{settings.__name__}.{key}": (settings, key, field)
    for settings in CLASSES
    for key, field in settings.model_fields.items()
    if kind_of(field)
}
# A value for a key that has no default, where not any text will do.
REQUIRED = {"to": "kohya", "shape": "tiny"}
# Other programs' names, and the key that has their value.
OTHER_NAMES = {"min_snr_gamma": "snr_gamma"}


def validated(settings, key, value):
    """The value that the key has when it is given, beside what must be."""
    fields = settings.model_fields.items()
    given = {k: REQUIRED.get(k, "x") for k, f in fields if f.is_required()}
    if key == "lr_warmup_steps":
        given["max_train_steps"] = 10**9
    given |= {key: value}
    found = validation.validate(settings, given, "with --key value")
    return getattr(found, OTHER_NAMES.get(key, key))


def test_every_class_of_keys_is_of_one_base():
    assert len(CLASSES) > 20
    for settings in CLASSES:
        assert issubclass(settings, Settings)
        config = settings.model_config
        assert config["frozen"] and config["extra"] == "forbid", settings
        assert config["allow_inf_nan"] is False, settings


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_has_a_smallest_and_a_largest_value(number):
    settings, key, field = NUMBERS[number]
    low, high = limits(field)
    assert low is not None and high is not None
    assert high < INT32 or key in ("seed",)
    assert high < float("inf")
    # Hosts of a job are given together; tests/config/test_run_config.py has them.
    if key not in ("num_processes", "process_id"):
        multiple = next((m.multiple_of for m in field.metadata if is_multiple(m)), 1)
        for inside in (low, high):
            if kind_of(field) is int:
                inside = multiple * -(-inside // multiple)
            assert validated(settings, key, inside) == inside
    above = high + (1 if kind_of(field) is int else max(1.0, high))
    for outside in (low - 1, above, "9" * 5000, float("inf"), "1e999", float("nan")):
        with pytest.raises(UserError) as caught:
            validated(settings, key, outside)
        message = str(caught.value)
        assert message.startswith(f"{key}: expected ")
        assert "\n" not in message and len(message) < 250, message


def is_multiple(mark):
    return isinstance(mark, annotated_types.MultipleOf)
