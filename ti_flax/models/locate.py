"""A model's folder, downloaded where the model is a repository of the Hub."""

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.hub import snapshot
from ti_flax.hub.ids import is_repository, parse
from ti_flax.models import weight_files
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import MAX_JSON_BYTES, names_in

_KEY = "pretrained_model_name_or_path"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_TOKENIZER_FILES = ("*.json", "*.txt")
_SINGLE_FILES = (".bin", ".ckpt", ".gguf", ".pt", ".pth", ".safetensors")


class Located(NamedTuple):
    """A model's folder; of one from the Hub, the repository, else None."""

    folder: Path
    repository: str | None

    def fetch_weights(
        self, parts: Iterable[str], variant: str | None, alone: bool = False
    ) -> None:
        """Downloads the weight files of the parts that will be read, and no others.

        `alone`: the repository is that of the one part, without a folder for it.

        Raises `UserError` where the Hub does not give them.
        """
        if self.repository is None:
            return
        # The commit of the settings, which were found to be a model's.
        revision = self.folder.name
        listing, failed = _list_files(self.repository, revision)
        names = _names_in_cache(self.folder) if failed else [*listing.sizes]
        patterns = []
        for part in parts:
            before = "" if alone else f"{part}/"
            inside = [
                name.removeprefix(before) for name in names if name.startswith(before)
            ]
            if (
                failed is not None
                and weight_files.choose(part, inside, variant) is None
            ):
                raise _unreachable(_KEY, self.repository, failed)
            place = f"{self.repository}/{before}".rstrip("/")
            chosen = weight_files.choose_or_tell(place, part, inside, variant, names)
            patterns += weight_files.patterns(before, chosen)
        if patterns:
            _download(_KEY, self.repository, revision, patterns, listing)


def find_model(name_or_path: str, revision: str | None) -> Located:
    """The folder of a model with its settings and tokenizers.

    Of a repository of the Hub nothing more is downloaded, for a model of a family that
    is not supported should cost no gigabytes. What the cache holds is not fetched
    again, and without a network the cache alone serves.

    Raises `UserError` where there is no such folder or repository.
    """
    patterns = ["model_index.json", "scheduler/*.json"]
    for name in _TOKENIZERS:
        patterns += [f"{name}/{ending}" for ending in _TOKENIZER_FILES]
    for part in weight_files.STEMS:
        patterns += [f"{part}/config.json", f"{part}/*.index*.json"]
    return _find(_KEY, name_or_path, revision, patterns)


def find_tokenizer(name_or_path: str, revision: str | None) -> Path:
    """The tokenizer's folder in a model's folder or repository, or one by itself.

    Raises `UserError` where there is no such folder or repository.
    """
    patterns = [f"{of}{end}" for of in ("", "tokenizer/") for end in _TOKENIZER_FILES]
    folder = _find("tokenizer_name", name_or_path, revision, patterns).folder
    nested = folder / "tokenizer"
    return nested if nested.is_dir() else folder


def find_file(key: str, name_or_path: str, revision: str | None) -> Path | None:
    """A single file, here or as owner/name/file on the Hub; None for what is neither.

    Raises `UserError` where the Hub does not give it.
    """
    path = os.path.expanduser(name_or_path)
    if os.path.exists(path):
        return None if os.path.isdir(path) else Path(path)
    found = parse(name_or_path)
    if found is None or not found.file.lower().endswith(_SINGLE_FILES):
        return None
    listing, _ = _list_files(found.repository, revision)
    folder = _download(key, found.repository, revision, [found.file], listing)
    if not os.path.exists(folder / found.file):
        raise UserError(
            f"{key}: no file {shown(name_or_path)}, here or in the Hub's repository "
            f"{found.repository}; give one that is there"
        )
    return folder / found.file


def find_part(key: str, parts: Iterable[str], name_or_path: str) -> Located:
    """The folder of a model that has parts, or of one alone, with its settings.

    Raises `UserError` where there is no such folder or repository.
    """
    found = ("config.json", "*.index*.json")
    tokenizers = [f"{name}/{end}" for name in _TOKENIZERS for end in _TOKENIZER_FILES]
    places = ["", *(f"{part}/" for part in parts)]
    patterns = [f"{before}{name}" for before in places for name in found]
    return _find(key, name_or_path, None, patterns + tokenizers)


def _find(
    key: str, name_or_path: str, revision: str | None, patterns: list[str]
) -> Located:
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):
        return Located(Path(path), None)
    if os.path.exists(path):
        raise UserError(
            f"{key}: expected a folder or a Hub repository id, found the file "
            f"{shown(name_or_path)}; give one of the two"
        )
    if path.lower().endswith(_SINGLE_FILES):
        raise UserError(
            f"{key}: no file {shown(name_or_path)}; give a file that is there, a "
            "folder in diffusers' layout or a Hub repository id (owner/name)"
        )
    if not is_repository(name_or_path):
        raise UserError(
            f"{key}: no folder {shown(name_or_path)}, and it is no Hub repository id "
            "(owner/name); give one of the two"
        )
    _check_sizes(key, name_or_path, revision, patterns)
    return Located(_download(key, name_or_path, revision, patterns), name_or_path)


def _check_sizes(
    key: str, repository: str, revision: str | None, patterns: list[str]
) -> None:
    """Refuses settings that would be too long to read before they are downloaded.

    Where the Hub does not say how long they are, the download will, or the cache has
    them.
    """
    listing, _ = _list_files(repository, revision)
    for name, size in listing.sizes.items():
        wanted = any(fnmatch.fnmatch(name, each) for each in patterns)
        if wanted and size is not None and size > MAX_JSON_BYTES:
            raise UserError(
                f"{key}: {repository}/{shown(name)[1:-1]} has {size} "
                f"bytes, expected at most {MAX_JSON_BYTES}; give a model as it was "
                "published"
            )


def _list_files(
    repository: str, revision: str | None
) -> tuple[snapshot.Listing, Exception | None]:
    """What the Hub has of a repository, or nothing and why."""
    try:
        return snapshot.list_files(repository, revision), None
    except Exception as error:  # whichever library the client is built on
        return snapshot.Listing(), error


def _download(
    key: str,
    repository: str,
    revision: str | None,
    patterns: list[str],
    listing: snapshot.Listing = snapshot.Listing(),  # noqa: B008, a tuple
) -> Path:
    try:
        return snapshot.download(repository, revision, patterns, listing)
    except Exception as error:  # whichever library the client is built on
        raise _unreachable(key, repository, error) from error


def _names_in_cache(folder: Path) -> list[str]:
    return [
        f"{before}{name}"
        for before in ("", *(f"{part}/" for part in weight_files.STEMS))
        for name in names_in(folder / before)
    ]


def _unreachable(key: str, repository: str, error: Any) -> UserError:
    return UserError(
        f"{key}: cannot fetch {repository!r} from the Hub ({one_line(error)}); check "
        "the name, the network and your access, or give a folder"
    )
