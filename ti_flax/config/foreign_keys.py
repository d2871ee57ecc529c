"""Names of other trainers for keys of a run: the one table of all, and what takes them.

A command line or a configuration that was written for another program either runs or
says, name by name, why it does not; docs/coming-from.md has the names for people.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ti_flax.config import a1111_settings, diffusers_flags, kohya_flags, onetrainer_keys
from ti_flax.config.foreign_names import (
    Foreign,
    Ignored,
    Made,
    Refused,
    plain,
    says_nothing,
)
from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)

# What several of them have means the same there.
NAMES: dict[str, Foreign] = {
    **onetrainer_keys.NAMES,
    **a1111_settings.NAMES,
    **kohya_flags.NAMES,
    **diffusers_flags.NAMES,
}


def translated(
    given: Mapping[Any, Any], told: set[str] | None = None
) -> dict[Any, Any]:
    """The keys that `given` means: names of other trainers are replaced or left out.

    What is left out is warned of, unless its name is in `told`, which gets it.

    Raises:
        UserError: a name that has no key and cannot be left out, a value that no key
            has, or two names of one key with two values.
    """
    told = set() if told is None else told
    keys = {name: value for name, value in given.items() if name not in NAMES}
    sources: dict[str, str] = {}
    for name, value in given.items():
        if name not in NAMES or value is None:
            continue
        for key, made in _keys_of(name, value, told).items():
            if plain(keys.setdefault(key, made)) != plain(made):
                raise UserError(
                    f"expected {sources.get(key, key)} or {name}, which both set "
                    f"{key}, found two values; remove one"
                )
            sources[key] = name
    return keys


def _keys_of(name: str, value: Any, told: set[str]) -> Mapping[str, Any]:
    match NAMES[name]:
        case Made(of):
            try:
                return of(value)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None
        case Ignored(reason, idle):
            if name not in told and not says_nothing(value, idle):
                told.add(name)
                _log.warning("%s is ignored: %s", name, reason)
        case Refused(advice, idle):
            if not says_nothing(value, idle):
                raise UserError(f"{name} is not there: {advice}")
    return {}
