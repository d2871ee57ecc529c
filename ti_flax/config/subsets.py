"""The key `subsets`: which sub-folders are read, and how often each counts."""

import re
from pathlib import PurePath
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from ti_flax.config.fields import Texts
from ti_flax.runtime.errors import shown

_MOST = 1000
_MOST_COUNTED = 10**9
_COUNTED = re.compile(r"([+-]?[0-9]+):(.*)", re.DOTALL)


class Subset(NamedTuple):
    """A folder of pictures."""

    # Inside train_data_dir, with slashes; "." is train_data_dir itself.
    path: str
    # How many times each of its pictures counts.
    count: int


def subset_of(text: str) -> Subset:
    """Reads `N:PATH` or `PATH`.

    Raises:
        ValueError: N is out of its range, or the path leads out of the folder.
    """
    counted = _COUNTED.fullmatch(text)
    digits, inside = counted.groups() if counted else ("1", text)
    # Python reads no number of more than 4300 digits.
    count = int(digits) if len(digits) <= len(str(_MOST_COUNTED)) + 1 else 0
    if not 1 <= count <= _MOST_COUNTED:
        raise ValueError(
            f"expected N:PATH with N from 1 to {_MOST_COUNTED}, found {shown(text)}; "
            "change N"
        )
    path = PurePath(inside)
    if not inside or path.anchor or ".." in path.parts or "\0" in inside:
        raise ValueError(
            f"expected the path of a folder inside train_data_dir, found {shown(text)};"
            " give it from there, without .."
        )
    return Subset(path.as_posix(), count)


def text_of(subset: Subset) -> str:
    """As `subset_of` reads it."""
    plain = subset.count == 1 and not _COUNTED.fullmatch(subset.path)
    return subset.path if plain else f"{subset.count}:{subset.path}"


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(texts) > _MOST:
        raise ValueError(
            f"expected at most {_MOST} folders, found {len(texts)}; put pictures of "
            "several into one"
        )
    subsets = [subset_of(text) for text in texts]
    seen = set()
    for subset in subsets:
        if subset.path in seen:
            raise ValueError(
                f"expected each folder once, found {shown(subset.path)} twice; remove "
                "one, N:PATH counts it N times"
            )
        seen.add(subset.path)
    return tuple(map(text_of, subsets))


Subsets = Annotated[Texts, AfterValidator(_checked)]
