"""A model's folder, downloaded where the model is a repository of the Hub."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.hub.ids import is_repository
from ti_flax.models import weight_files
from ti_flax.runtime.errors import UserError, one_line, shown
from ti_flax.runtime.regular_files import names_in

_KEY = "pretrained_model_name_or_path"
_TOKENIZER_FILES = ("*.json", "*.txt")
_SINGLE_FILES = (".bin", ".ckpt", ".gguf", ".pt", ".pth", ".safetensors")


class Located(NamedTuple):
    """A model's folder; of one from the Hub, the repository, else None."""

    folder: Path
    repository: str | None

    def fetch_weights(self, parts: Iterable[str], variant: str | None) -> None:
        """Downloads the weight files of the parts that will be read, and no others.

        Raises `UserError` where the Hub does not give them.
        """
        if self.repository is None:
            return
        # The commit of the settings, which were found to be a model's.
        revision = self.folder.name
        names, failed = _names_on_hub(self.repository, revision), None
        if isinstance(names, Exception):
            names, failed = _names_in_cache(self.folder), names
        patterns = []
        for part in parts:
            inside = [
                name.removeprefix(f"{part}/")
                for name in names
                if name.startswith(f"{part}/")
            ]
            chosen = weight_files.choose(part, inside, variant)
            if chosen is None and failed is not None:
                raise _unreachable(_KEY, self.repository, failed)
            # Without any, `weight_files.find` says what there is.
            patterns += weight_files.patterns(part, chosen) if chosen else []
        if patterns:
            _snapshot(_KEY, self.repository, revision, patterns)


def find_model(name_or_path: str, revision: str | None) -> Located:
    """The folder of a model with its settings and tokenizers.

    Of a repository of the Hub nothing more is downloaded, for a model of a family that
    is not supported should cost no gigabytes. What the cache holds is not fetched
    again, and without a network the cache alone serves.

    Raises `UserError` where there is no such folder or repository.
    """
    patterns = ["model_index.json", "scheduler/*.json"]
    for name in ("tokenizer", "tokenizer_2"):
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


def _find(
    key: str, name_or_path: str, revision: str | None, patterns: list[str]
) -> Located:
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):
        return Located(Path(path), None)
    if os.path.exists(path):
        raise UserError(
            f"{key}: {shown(name_or_path)} is a file, and single files are not read "
            "yet; give a folder in diffusers' layout or a Hub repository id"
        )
    if path.lower().endswith(_SINGLE_FILES):
        raise UserError(
            f"{key}: no file {shown(name_or_path)}; give a folder in diffusers' layout "
            "or a Hub repository id (owner/name)"
        )
    if not is_repository(name_or_path):
        raise UserError(
            f"{key}: no folder {shown(name_or_path)}, and it is no Hub repository id "
            "(owner/name); give one of the two"
        )
    return Located(_snapshot(key, name_or_path, revision, patterns), name_or_path)


def _snapshot(
    key: str, repository: str, revision: str | None, patterns: list[str]
) -> Path:
    # Slow to import, and not needed for a local folder.
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns
            )
        )
    except Exception as error:  # whichever library the client is built on
        raise _unreachable(key, repository, error) from error


def _names_on_hub(repository: str, revision: str) -> list[str] | Exception:
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # whichever library the client is built on
        return error


def _names_in_cache(folder: Path) -> list[str]:
    return [
        f"{part}/{name}"
        for part in weight_files.STEMS
        for name in names_in(folder / part)
    ]


def _unreachable(key: str, repository: str, error: Any) -> UserError:
    return UserError(
        f"{key}: cannot fetch {repository!r} from the Hub ({one_line(error)}); check "
        "the name, the network and your access, or give a folder"
    )
