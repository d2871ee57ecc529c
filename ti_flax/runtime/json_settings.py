"""A JSON object's settings, each read by its type and its bounds."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ti_flax.runtime.errors import UserError, shown

# Blocks of a network: every level halves the picture.
_MAX_BLOCKS = 8
_MAX_ENTRIES = 100_000
# No setting with one value has as many, whatever it means for each block.
_MAX_FIXED = 64
# Activations have two names in PyTorch's libraries.
_SAME = {"swish": "silu"}


class Settings:
    """The settings of a model's part, as its configuration file has them.

    None counts as absent, and a list of equal entries as one of them: diffusers takes
    either where blocks may differ. Every method raises a `UserError` of one line where
    a key is not what is asked for.
    """

    def __init__(
        self, part: str, content: Mapping[str, Any], instead: str, file: str = ""
    ) -> None:
        """`instead` is the advice where a sound setting is not supported.

        `file` is the configuration's, `part`/config.json by default.
        """
        self.part = part
        self._content = content
        self._instead = instead
        self._file = file or f"{part}/config.json"

    def has(self, key: str) -> bool:
        return self._content.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in [low, high], the same in every block."""
        value = self._one(key, default)
        return self._integer(key, value, low, high)

    def integers(
        self,
        key: str,
        low: int,
        high: int,
        count: int | None = None,
        default: int | None = None,
    ) -> tuple[int, ...]:
        """Whole numbers in [low, high]: one for each of `count` blocks, or one for all.

        Without `count` the list itself says how many blocks there are.
        """
        value = self._get(key, default)
        if count is not None and not isinstance(value, list | tuple):
            return (self._integer(key, value, low, high),) * count
        entries = self._entries(key, value, count)
        return tuple(self._integer(key, entry, low, high) for entry in entries)

    def nested_integers(
        self,
        key: str,
        low: int,
        high: int,
        counts: Sequence[int],
        default: int | None = None,
    ) -> tuple[tuple[int, ...], ...]:
        """`counts[i]` numbers in [low, high] for block i, listed or one for all."""
        value = self._get(key, default)
        if not isinstance(value, list | tuple):
            value = [value] * len(counts)
        read = []
        for entry, count in zip(
            self._entries(key, value, len(counts)), counts, strict=True
        ):
            if not isinstance(entry, list | tuple):
                entry = [entry] * count
            inner = self._entries(key, entry, count)
            read.append(tuple(self._integer(key, one, low, high) for one in inner))
        return tuple(read)

    def number(
        self, key: str, low: float, high: float, default: float | None = None
    ) -> float:
        """A finite number in [low, high], the same in every block."""
        return self._number(key, self._one(key, default), low, high)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """A list of any length of finite numbers in [low, high]."""
        value = self._get(key, None)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= _MAX_ENTRIES:
            self._refuse(key, value, f"expected a list of 1 to {_MAX_ENTRIES} numbers")
        return tuple(self._number(key, entry, low, high) for entry in value)

    def one_each(
        self, key: str, low: float, high: float, count: int
    ) -> tuple[float, ...] | None:
        """`count` finite numbers in [low, high]; None where the key is absent."""
        if not self.has(key):
            return None
        entries = self._entries(key, self._get(key, None), count)
        return tuple(self._number(key, entry, low, high) for entry in entries)

    def flag(self, key: str, default: bool) -> bool:
        value = self._one(key, default)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            self._refuse(key, value, "expected true or false")
        return bool(value)

    def choice(
        self, key: str, known: Collection[str], default: str | None = None
    ) -> str:
        """One of the names in `known`, the same in every block."""
        return self._choice(key, self._one(key, default), known)

    def choices(self, key: str, known: Collection[str], count: int) -> tuple[str, ...]:
        """One of the names in `known` for each of `count` blocks."""
        entries = self._entries(key, self._get(key, None), count)
        return tuple(self._choice(key, entry, known) for entry in entries)

    def fixed(self, values: Mapping[str, Any]) -> None:
        """Keys that may have one value only; a file that leaves them out means it."""
        for key, value in values.items():
            found = _meaning(self._content.get(key))
            if found is not None and found != _meaning(value):
                self._unsupported(key, self._content[key], f"supported is {value!r}")

    def divides(self, key: str, divisor: int, numbers: Iterable[int]) -> None:
        """What was read as `key` divides each of the numbers."""
        for number in numbers:
            if number % divisor:
                self._refuse(key, divisor, f"expected a divisor of {number}")

    def of_class(self, name: str) -> None:
        """The class that wrote the file, where it says so; Flax's twin is the same."""
        found = self._content.get("_class_name")
        if found not in (None, name, f"Flax{name}"):
            raise UserError(
                f"{self.part}: its class is {shown(found)}, supported is {name}; "
                f"{self._instead}"
            )

    def _get(self, key: str, default: Any) -> Any:
        value = self._content.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.part}: {key} is missing; {self._as_published()}")
        return value

    def _one(self, key: str, default: Any) -> Any:
        value = self._get(key, default)
        if not isinstance(value, list | tuple):
            return value
        if not value or any(entry != value[0] for entry in value):
            self._unsupported(key, value, "supported is the same in all blocks")
        return value[0]

    def _entries(self, key: str, value: Any, count: int | None) -> Any:
        wanted = f"1 to {_MAX_BLOCKS}" if count is None else str(count)
        if not isinstance(value, list | tuple):
            self._refuse(key, value, f"expected a list of {wanted}, one a block")
        if not (
            1 <= len(value) <= _MAX_BLOCKS if count is None else len(value) == count
        ):
            told = f"expected {wanted} entries, one a block, found {len(value)}"
            self._refuse(key, value, told)
        return value

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if not _is_number(value) or not low <= value <= high or value != int(value):
            self._refuse(key, value, f"expected {_range(low, high)}")
        return int(value)

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
        if not _is_number(value) or not low <= value <= high:
            self._refuse(key, value, f"expected {_range(low, high)}")
        return float(value)

    def _choice(self, key: str, value: Any, known: Collection[str]) -> str:
        name = _meaning(value)
        if type(name) is not str:
            self._refuse(key, value, f"expected {_any_of(known)}")
        if name not in known:
            self._unsupported(key, value, f"supported is {_any_of(known)}")
        return name

    def _refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        raise UserError(
            f"{self.part}: {key} is {shown(value)}, {expected}; {self._as_published()}"
        )

    def _unsupported(self, key: str, value: Any, supported: str) -> NoReturn:
        raise UserError(
            f"{self.part}: {key} is {shown(value)}, {supported}; {self._instead}"
        )

    def _as_published(self) -> str:
        return f"use the {self._file} that came with the weights"


def _meaning(value: Any) -> Any:
    """A value that equals another where both say the same to diffusers."""
    if isinstance(value, list | tuple) and len(value) <= _MAX_FIXED:
        entries = tuple(map(_meaning, value))
        same = bool(entries) and all(entry == entries[0] for entry in entries)
        return entries[0] if same else entries
    return _SAME.get(value, value) if type(value) is str else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(low: float, high: float) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _any_of(known: Collection[str]) -> str:
    return " or ".join(known)
