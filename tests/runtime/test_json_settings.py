"""What a model's settings may be, and the one line for everything else."""

import math
import unicodedata

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ti_flax.runtime.errors import UserError
from ti_flax.runtime.json_settings import Settings

ACTIVATIONS = ("silu", "gelu")


def of(value, **others):
    return Settings("unet", {"key": value, **others}, "use another model")


def absent():
    return Settings("unet", {}, "use another model")


def integer(settings):
    return settings.integer("key", 1, 64, 4)


def per_block(settings):
    return settings.integers("key", 1, 64, 3, 4)


def widths(settings):
    return settings.integers("key", 1, 64)


def number(settings):
    return settings.number("key", 0, 1, 0.5)


def numbers(settings):
    return settings.numbers("key", 0, 1)


def flag(settings):
    return settings.flag("key", False)


def choice(settings):
    return settings.choice("key", ACTIVATIONS, "gelu")


def choices(settings):
    return settings.choices("key", ACTIVATIONS, 2)


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (integer, 1, 1),
        (integer, 64, 64),
        (integer, 8.0, 8),
        (integer, None, 4),
        (integer, [8, 8.0, 8], 8),
        (per_block, 8, (8, 8, 8)),
        (per_block, 8.0, (8, 8, 8)),
        (per_block, [1, 2, 3.0], (1, 2, 3)),
        (per_block, (1, 2, 3), (1, 2, 3)),
        (per_block, None, (4, 4, 4)),
        (widths, [8], (8,)),
        (widths, [8, 16, 64], (8, 16, 64)),
        (number, 0, 0.0),
        (number, 1, 1.0),
        (number, 1e-5, 1e-5),
        (number, [0.25, 0.25], 0.25),
        (number, None, 0.5),
        (numbers, [0, 0.5, 1], (0.0, 0.5, 1.0)),
        (flag, True, True),
        (flag, 1, True),
        (flag, 0.0, False),
        (flag, [True, True], True),
        (flag, None, False),
        (choice, "silu", "silu"),
        (choice, "swish", "silu"),
        (choice, ["swish", "swish"], "silu"),
        (choice, None, "gelu"),
        (choices, ["swish", "gelu"], ("silu", "gelu")),
    ],
)
def test_a_setting_is_read_by_its_meaning(read, value, expected):
    found = read(of(value))
    assert found == expected
    assert type(found) is type(expected)


DEEP = [[[[[[1]]]]]]


@pytest.mark.parametrize(
    ("read", "value", "told"),
    [
        (integer, 0, "key is 0, expected 1 to 64"),
        (integer, -1, "key is -1, expected 1 to 64"),
        (integer, 65, "key is 65, expected 1 to 64"),
        (integer, 10**12, "key is 1000000000000, expected 1 to 64"),
        (integer, 10**4000, "..."),
        (integer, 1e300, "key is 1e+300, expected 1 to 64"),
        (integer, 2.5, "key is 2.5, expected 1 to 64"),
        (integer, True, "key is True, expected 1 to 64"),
        (integer, "8", "key is '8', expected 1 to 64"),
        (integer, math.nan, "key is nan, expected 1 to 64"),
        (integer, math.inf, "key is inf, expected 1 to 64"),
        (integer, [], "key is [], supported is the same in all blocks"),
        (integer, [8, 4], "key is [8, 4], supported is the same in all blocks"),
        (integer, [0, 0], "key is 0, expected 1 to 64"),
        (integer, {}, "key is {}, expected 1 to 64"),
        (per_block, [1, 2], "expected 3 entries, one a block, found 2"),
        (per_block, [1, 2, 0], "key is 0, expected 1 to 64"),
        (per_block, [1, 2, [3]], "key is [3], expected 1 to 64"),
        (per_block, "123", "key is '123', expected 1 to 64"),
        (per_block, [], "expected 3 entries, one a block, found 0"),
        (widths, 8, "key is 8, expected a list of 1 to 8, one a block"),
        (widths, "88", "key is '88', expected a list of 1 to 8, one a block"),
        (widths, {"8": 8}, "expected a list of 1 to 8, one a block"),
        (widths, [8] * 9, "expected 1 to 8 entries, one a block, found 9"),
        (widths, [8] * 10**6, "found 1000000"),
        (widths, None, "key is missing"),
        (number, -1e-9, "key is -1e-09, expected 0 to 1"),
        (number, math.nan, "key is nan, expected 0 to 1"),
        (number, False, "key is False, expected 0 to 1"),
        (number, "1e-5", "key is '1e-5', expected 0 to 1"),
        (number, 10**4000, "expected 0 to 1"),
        (numbers, [], "expected a list of 1 to 100000 numbers"),
        (numbers, 0.5, "expected a list of 1 to 100000 numbers"),
        (numbers, [0.5, math.nan], "key is nan, expected 0 to 1"),
        (numbers, [0.5, [0.5]], "key is [0.5], expected 0 to 1"),
        (numbers, [0.5] * 100001, "expected a list of 1 to 100000 numbers"),
        (flag, "true", "key is 'true', expected true or false"),
        (flag, 2, "key is 2, expected true or false"),
        (flag, math.nan, "key is nan, expected true or false"),
        (flag, [True, False], "supported is the same in all blocks"),
        (choice, "relu", "key is 'relu', supported is silu or gelu"),
        (choice, 5, "key is 5, expected silu or gelu"),
        (choice, DEEP, "expected silu or gelu"),
        (choice, {"silu": 1}, "expected silu or gelu"),
        (choice, "\x1b[31msilu", r"key is '\x1b[31msilu', supported is silu or gelu"),
        (choice, "half \ud83d", r"key is 'half \ud83d', supported"),
        (choice, "x" * 10**6, "..."),
        (choices, ["gelu"], "expected 2 entries, one a block, found 1"),
        (choices, "gelu", "key is 'gelu', expected a list of 2, one a block"),
        (choices, ["gelu", None], "key is None, expected silu or gelu"),
        (choices, None, "key is missing"),
    ],
)
def test_anything_else_is_one_line_with_what_to_do(read, value, told):
    with pytest.raises(UserError) as caught:
        read(of(value))
    line = str(caught.value)
    assert line.startswith("unet: key is ") and told in line
    assert line.endswith(
        (
            "; use the unet/config.json that came with the weights",
            "; use another model",
        )
    )
    # Nothing was seen to be damaged; what is wrong is said instead.
    assert "damaged" not in line and "download" not in line
    assert len(line) < 320 and line.isprintable()


SAME = [
    (1, [1, 1.0, True, [1, 1], (1, 1.0), None]),
    (False, [False, 0, 0.0, [False, 0], None]),
    (None, [None, [None, None]]),
    ("silu", ["silu", "swish", ["silu", "swish"], None]),
    (-math.inf, [-math.inf, None]),
    ([1, 2], [[1, 2], (1.0, 2), None]),
]
OTHER = [
    (1, [0, 2, "1", [1, 2], [], {}, [[1, 2]], math.nan]),
    (False, [True, 1, "", "false", [False, True], []]),
    (None, [0, False, "", "text_time", [], {}, [None, 1]]),
    ("silu", ["relu", "SiLU", 1, ["silu", "gelu"], math.nan]),
    ([1, 2], [1, [2, 1], [1, 2, 3]]),
]


@pytest.mark.parametrize(
    ("wanted", "value"), [(wanted, value) for wanted, all_ in SAME for value in all_]
)
def test_a_fixed_setting_is_compared_by_its_meaning(wanted, value):
    of(value).fixed({"key": wanted})
    absent().fixed({"key": wanted})


@pytest.mark.parametrize(
    ("wanted", "value"), [(wanted, value) for wanted, all_ in OTHER for value in all_]
)
def test_another_meaning_is_refused_with_what_to_use_instead(wanted, value):
    with pytest.raises(UserError) as caught:
        of(value).fixed({"key": wanted})
    line = str(caught.value)
    assert line == (
        f"unet: key is {value!r}, supported is {wanted!r}; use another model"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
READERS = [integer, per_block, widths, number, numbers, flag, choice, choices]


# The first text is slow where the machine has other work.
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(JSON)
def test_whatever_json_holds_ends_in_a_value_or_a_line(value):
    for read in [*READERS, lambda settings: settings.fixed({"key": 1})]:
        try:
            read(of(value))
        except UserError as error:
            line = str(error)
            assert len(line) < 640
            assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs"}


@pytest.mark.parametrize("name", ["AutoencoderKL", "FlaxAutoencoderKL", None])
def test_the_class_that_is_supported_passes(name):
    content = {} if name is None else {"_class_name": name}
    Settings("vae", content, "use another").of_class("AutoencoderKL")


@pytest.mark.parametrize("name", ["AutoencoderTiny", "VQModel", 5, ["AutoencoderKL"]])
def test_another_class_is_named(name):
    settings = Settings("vae", {"_class_name": name}, "use another")
    with pytest.raises(UserError) as caught:
        settings.of_class("AutoencoderKL")
    assert str(caught.value) == (
        f"vae: its class is {name!r}, supported is AutoencoderKL; use another"
    )
