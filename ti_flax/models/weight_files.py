"""Which files of a folder are the weights of a network."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ti_flax.runtime.errors import UserError, listed, shown
from ti_flax.runtime.regular_files import names_in, read_json

# A network's folder, and how its weight files begin as safetensors and as torch's.
STEMS = {
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
    "bert": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vqvae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
}
_SUFFIXES = ("safetensors", "bin")
# Of a shard or a single file; more lead out of the folder or to another format.
_SHARD = re.compile(r"[\w-][\w.-]{0,250}\.(safetensors|bin)", re.ASCII)
_MAX_SHARDS = 1000


class Chosen(NamedTuple):
    """A network's weights: one file, or the index that names several.

    `variant` is what their names have between stem and suffix, such as fp16.
    """

    name: str
    sharded: bool
    variant: str | None


def choose(part: str, names: Collection[str], variant: str | None) -> Chosen | None:
    """Of the names in a part's folder the weights to read; None if there are none.

    Those of the variant come first, then those without one, safetensors before
    torch's. Without a variant asked for, the only one that there is serves.
    """
    found = {variant_of(part, name) for name in names} - {None, ""}
    wanted = [variant, None] if variant else [None]
    if not variant and len(found) == 1:
        wanted += found
    for one in wanted:
        for candidate in _candidates(part, one):
            if candidate.name in names:
                return candidate
    return None


def variant_of(part: str, name: str) -> str | None:
    """The variant in the name of a weight file, "" without one; None for no weights."""
    for stem, suffix in zip(STEMS[part], _SUFFIXES, strict=True):
        single = re.fullmatch(rf"{stem}(?:\.(\w+))?\.{suffix}", name)
        index = re.fullmatch(rf"{stem}\.{suffix}\.index(?:\.(\w+))?\.json", name)
        if single or index:
            return (single or index)[1] or ""
    return None


def patterns(before: str, chosen: Chosen) -> list[str]:
    """What matches the chosen files in a repository, and in an index's case shards.

    `before` is what stands before their names: a folder and a slash, or nothing.
    """
    if not chosen.sharded:
        return [f"{before}{chosen.name}"]
    stem, suffix = chosen.name.split(".")[:2]
    shards = [f"{stem}*-of-*.{suffix}"]
    if chosen.variant:
        shards = [f"{stem}.{chosen.variant}-*-of-*.{suffix}"]
        shards += [f"{stem}-*-of-*.{chosen.variant}.{suffix}"]
    return [f"{before}{name}" for name in (chosen.name, *shards)]


def _candidates(part: str, variant: str | None) -> Iterator[Chosen]:
    middle = f".{variant}" if variant else ""
    for stem, suffix in zip(STEMS[part], _SUFFIXES, strict=True):
        yield Chosen(f"{stem}{middle}.{suffix}", False, variant)
        yield Chosen(f"{stem}.{suffix}.index{middle}.json", True, variant)


def find(
    folder: Path, part: str, variant: str | None, inside: str
) -> tuple[Chosen, list[Path]]:
    """The weights of a part of a model's folder, and their files, which are `inside`.

    Raises:
        UserError: there are none, none of the model's parts has the variant, or an
            index names what is not there.
    """
    place = folder / inside
    elsewhere = (
        f"{other}/{name}" for other in STEMS for name in names_in(folder / other)
    )
    chosen = choose_or_tell(place, part, names_in(place), variant, elsewhere)
    path = place / chosen.name
    return chosen, _shards(path) if chosen.sharded else [path]


def choose_or_tell(
    place: Path | str,
    part: str,
    names: Collection[str],
    variant: str | None,
    elsewhere: Iterable[str],
) -> Chosen:
    """What `choose` does; `elsewhere` are the files of all parts, with their folders.

    Raises:
        UserError: there are no weights, or none of the model's parts has the variant.
    """
    chosen = choose(part, names, variant)
    if chosen is None:
        raise UserError(_none_found(place, part, names, variant))
    if variant and chosen.variant != variant and not _has(elsewhere, variant):
        raise UserError(
            f"{place}: found {listed(_weights_among(part, names))}, and no part of the "
            f"model has files of variant {variant!r}; leave variant out, or give one "
            "that is there"
        )
    return chosen


def _has(paths: Iterable[str], variant: str) -> bool:
    split = (path.rpartition("/") for path in paths)
    return any(
        part in STEMS and variant_of(part, name) == variant for part, _, name in split
    )


def _weights_among(part: str, names: Collection[str]) -> list[str]:
    stems = tuple(STEMS[part])
    return sorted(name for name in names if name.startswith(stems))


def _none_found(
    place: Path | str, part: str, names: Collection[str], variant: str | None
) -> str:
    variants = sorted({variant_of(part, name) or "" for name in names} - {""})
    found = listed(_weights_among(part, names)) or "no weights"
    advice = "give a folder or a revision that has them"
    if variants and not variant:
        advice = f"set variant to {' or '.join(map(ascii, variants[:4]))}"
    wanted = next(_candidates(part, variant)).name
    return f"{place}: expected {wanted}, found {found}; {advice}"


def _shards(index: Path) -> list[Path]:
    content = read_json(index, "download the model again")
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(
            f"{index}: weight_map is {shown(names)}, expected the file of each tensor; "
            "give a model as it was published"
        )
    for name in names.values():
        if type(name) is not str or not _SHARD.fullmatch(name):
            raise UserError(
                f"{index}: names the file {shown(name)}, expected one of its folder "
                "that ends in .safetensors or .bin; give a model as it was published"
            )
    shards = sorted(set(names.values()))
    if len(shards) > _MAX_SHARDS:
        raise UserError(
            f"{index}: names {len(shards)} files, expected at most {_MAX_SHARDS}; give "
            "a model as it was published"
        )
    missing = [name for name in shards if not os.path.exists(index.parent / name)]
    if missing:
        raise UserError(
            f"{index}: names {listed(missing)}, not there; download the model again"
        )
    return [index.parent / name for name in shards]
