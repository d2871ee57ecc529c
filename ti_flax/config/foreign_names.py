"""What a name of another trainer is here, and readers of the values it may have."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from ti_flax.runtime.errors import shown

Keys = dict[str, Any]

_SWITCH = TypeAdapter(bool)


class Made(NamedTuple):
    """Keys of ours that mean the same, made of its value; `ValueError`: of no such."""

    of: Callable[[Any], Keys]


class Ignored(NamedTuple):
    """Nothing is to be set, and nothing that is learned depends on it."""

    reason: str
    # Values that ask for nothing, so that nothing is told.
    idle: tuple[Any, ...] = ()


class Refused(NamedTuple):
    """Without it something else would be learned; the advice says what to write."""

    advice: str
    idle: tuple[Any, ...] = ()


Foreign = Made | Ignored | Refused


def renamed(keys: Mapping[str, str]) -> dict[str, Foreign]:
    """Other names of keys, and the key of each."""
    return {name: _of_key(key) for name, key in keys.items()}


def _of_key(key: str) -> Made:
    return Made(lambda value: {key: value})


def switched(**keys: Any) -> Made:
    """A switch that sets these keys where it is on."""
    return Made(lambda value: keys if is_on(value) else {})


def chosen(values: Mapping[str, Keys], advice: str) -> Made:
    """Keys by the value, whose letter case does not count.

    What is no such value is a `ValueError` that ends in `advice`.
    """

    def keys(value: Any) -> Keys:
        found = values.get(str(value).casefold())
        if found is None:
            raise ValueError(
                f"expected {_choice(values)}, found {shown(value)}; {advice}"
            )
        return found

    return Made(keys)


def ignored(reasons: Mapping[str, str]) -> dict[str, Foreign]:
    """Names, of which several stand in a text, and the reason of each."""
    return {
        name: Ignored(reason)
        for names, reason in reasons.items()
        for name in names.split()
    }


def is_on(value: Any) -> bool:
    """The value of a switch. Raises `ValueError` for what is none."""
    try:
        return _SWITCH.validate_python(value)
    except ValidationError:
        raise ValueError(f"expected true or false, found {shown(value)}") from None


def says_nothing(value: Any, idle: tuple[Any, ...]) -> bool:
    """Whether a value is empty, a switch that is off, or one of `idle`."""
    return plain(value) in {"none", "null", "false", "", *map(plain, idle)}


def plain(value: Any) -> str:
    """A value as a text, equal for all spellings of a number or of true and false."""
    text = str(value).casefold()
    try:  # a number has many spellings: 1, 1.0
        return f"{float(text):g}"
    except ValueError:
        return text


def _choice(values: Mapping[str, Keys]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last
