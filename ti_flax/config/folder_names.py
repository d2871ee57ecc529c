"""Names of concepts: each is that of a folder, on any system, and of one alone."""

import re
import unicodedata

_NAME = re.compile(r"\w([\w .-]*[\w-])?")
_OTHER = r"[^\w.-]+"
_AROUND = re.compile(rf"\A{_OTHER}|{_OTHER}\Z")
# Windows keeps these for devices, with any ending.
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE
)
# What runs of several concepts write beside their folders.
_TAKEN = re.compile(r"index\.html|concepts(-\d+-of-\d+)?\.json")
# 255 bytes are what most systems take; files get endings.
MOST_LETTERS = 120
_MOST_BYTES = 200


def is_name(text: str) -> bool:
    """Whether every system takes the text as the name of a folder."""
    return (
        _NAME.fullmatch(text) is not None
        and not _DEVICES.fullmatch(text)
        and not _TAKEN.fullmatch(folded(text))
        and len(text) <= MOST_LETTERS
        and len(text.encode("utf-8", "replace")) <= _MOST_BYTES
    )


def reduced(text: str) -> str:
    """The text of letters, digits, . _ and -; "_" where nothing is left."""
    return re.sub(_OTHER, "-", _AROUND.sub("", text)) or "_"


def made(text: str, spaces: bool = False) -> str:
    """The name nearest to any text; with `spaces` those inside it stay."""
    words = text.split(" ") if spaces else [text]
    name = " ".join(reduced(word) for word in words if word)
    name = shortened(name.lstrip(".- ")).rstrip(". ")
    return name if is_name(name) else f"_{name}"


def shortened(name: str, most: int = MOST_LETTERS) -> str:
    """Its beginning, as long as a name may be."""
    name = name[:most]
    while len(name.encode("utf-8", "replace")) > _MOST_BYTES:
        name = name[:-1]
    return name


def folded(name: str) -> str:
    """What names have in common that are one folder on some system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Numbered:
    """Gives out names, each once: a second one of the same gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        first, key = name, folded(name)
        while folded(name) in self._taken:
            self._counts[key] = self._counts.get(key, 1) + 1
            number = f"-{self._counts[key]}"
            name = shortened(first, MOST_LETTERS - len(number)) + number
        self._taken.add(folded(name))
        return name
