"""Files that go with pictures by their names: captions and masks."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from ti_flax.data.caption_text import composed
from ti_flax.runtime.regular_files import names_in


def siblings(
    places: Mapping[str, Path],
    suffixes: str | tuple[str, ...],
    stem_of: Callable[[str], str],
    ending: str = "",
) -> dict[str, list[Path]]:
    """The files in the folder of each place that have its stem and an ending.

    Args:
        places: paths by picture; their files need not be there.
        suffixes: in small letters; those of the files may have others.
        stem_of: what of two names must agree.
        ending: what stands after the stem in the files' names.
    """
    inside: dict[Path, dict[str, list[str]]] = {}
    for parent in {place.parent for place in places.values()}:
        by_stem = inside.setdefault(parent, {})
        for name in names_in(parent):
            if name.lower().endswith(suffixes):
                by_stem.setdefault(stem_of(name), []).append(name)
    found = {
        picture: inside[place.parent].get(stem_of(place.name) + ending, [])
        for picture, place in places.items()
    }
    return {
        picture: [places[picture].parent / name for name in names]
        for picture, names in found.items()
        if names
    }


def exact_stem(name: str) -> str:
    """With composed letters: macOS decomposes those of file names."""
    return composed(PurePosixPath(name).stem)


def caseless_stem(name: str) -> str:
    return exact_stem(name).lower()
