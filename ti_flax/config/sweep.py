"""The key `sweep`: values that every concept is trained with, each with each."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ti_flax.config import folder_names
from ti_flax.config.command_line import means_none
from ti_flax.config.many_keys import mistake_of_key, mistake_of_value
from ti_flax.config.run_config import Config
from ti_flax.runtime.errors import UserError, one_line, shown

Axes = Mapping[str, Sequence[Any]]

_SHAPE = "learning_rate=0.001,0.005 (in YAML, learning_rate: [0.001, 0.005])"
# Letters of a value in a name.
_LONGEST_VALUE = 40


def read(given: Any) -> dict[str, list[Any]]:
    """The values of each key: of a mapping in YAML, of texts on the command line.

    Raises:
        UserError: a key that no concept may have for itself, a key without values or
            with a value twice, or something of another shape.
    """
    if given is None:
        return {}
    axes: dict[str, list[Any]] = {}
    for key, values in _pairs(given):
        problem = mistake_of_key(key)
        if problem is not None:
            raise UserError(f"sweep: {problem}")
        if key in axes:
            raise UserError(f"sweep: {key} is given twice; give all its values at once")
        axes[key] = _checked(key, values)
    return axes


def count(axes: Axes) -> int:
    """How many settings there are."""
    return math.prod(map(len, axes.values()))


def settings(axes: Axes) -> Iterator[dict[str, Any]]:
    """Each value with each, the last key changing first."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def name(concept: str | None, swept: Mapping[str, Any]) -> str:
    """A folder's name that says what is swept: `cat-learning_rate_0.001`."""
    words = [] if concept is None else [concept]
    words += [f"{key}_{_in_name(value)}" for key, value in swept.items()]
    return folder_names.shortened("-".join(words)).rstrip(". ")


def _pairs(given: Any) -> Iterator[tuple[Any, Any]]:
    texts = [given] if isinstance(given, str) else given
    if isinstance(given, dict) and given:
        yield from given.items()
    elif (
        isinstance(texts, list | tuple)
        and texts
        and all(isinstance(text, str) for text in texts)
    ):
        for text in texts:
            key, equals, values = text.partition("=")
            if not equals:
                raise UserError(f"sweep: expected {_SHAPE}, found {shown(text)}")
            yield key, [_from_text(key, value) for value in values.split(",")]
    else:
        raise UserError(f"sweep: expected {_SHAPE}, found {shown(given)}")


def _from_text(key: str, text: str) -> str | None:
    """A value of the command line, where `none` empties what may be empty."""
    field = Config.model_fields.get(key)
    return None if field is not None and means_none(field, text) else text


def _checked(key: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(
            f"sweep: {key}: expected a list of values, found {shown(values)}; give one "
            "at least"
        )
    seen = set()
    for value in values:
        problem = mistake_of_value(value)
        if value == "":
            problem = "expected values with a comma between them, found an empty one"
        if problem is not None:
            raise UserError(f"sweep: {key}: {problem}")
        # Text and number are told apart: only the key knows whether they are equal.
        if repr(value) in seen:
            raise UserError(f"sweep: {key}: {shown(value)} is given twice; remove one")
        seen.add(repr(value))
    return values


def _in_name(value: Any) -> str:
    if isinstance(value, list):
        text = "_".join(map(_in_name, value))
    elif value is None or isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value)
    return folder_names.reduced(one_line(text)[:_LONGEST_VALUE])
