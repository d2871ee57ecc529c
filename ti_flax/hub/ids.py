"""What a Hub repository id is."""

import os
import re
from pathlib import Path
from typing import NamedTuple

# Of an owner and of a repository: ASCII; the first and last are letters, digits or _.
_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}", re.ASCII)
# Names of a folder or file in it; none leads out of the repository.
_FILE = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*", re.ASCII)

_MODELS = (".safetensors", ".ckpt")


class HubId(NamedTuple):
    """A repository, `owner/name`, and the path of a file in it, empty for all of it."""

    repository: str
    file: str

    def __str__(self) -> str:
        return "/".join(filter(None, self))


def parse(name: str) -> HubId | None:
    """What `owner/name` or `owner/name/file` names; None where it is neither.

    By the rules of huggingface_hub's `validate_repo_id`, which is slow to import.
    Whether the Hub has it is another question, and so is whether a local file has the
    same name.
    """
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not _REPOSITORY.fullmatch(f"{owner}/{repository}"):
        return None
    if repository.endswith(".git"):
        return None
    if name != f"{owner}/{repository}" and not _FILE.fullmatch(file):
        return None
    return HubId(f"{owner}/{repository}", file)


def is_repository(name: str) -> bool:
    """Whether a name is `owner/name`, as of a base model."""
    found = parse(name)
    return found is not None and not found.file


def model_name(name_or_path: str) -> str:
    """A Hub id as it is, of a folder or a file its name alone."""
    path = os.path.expanduser(name_or_path)
    # Not pathlib's: it raises where a name is too long for a file.
    if os.path.isdir(path):
        return Path(path).resolve().name
    return os.path.basename(path) if os.path.exists(path) else name_or_path


def names_one_file(name_or_path: str) -> bool:
    """Whether that is a model in one file, here or on the Hub."""
    return name_or_path.endswith(_MODELS)


def hub_id(name_or_path: str) -> str | None:
    """The Hub id of a base model, None when it is a local folder or file.

    Of a model in one file, owner/name/file, the repository alone.
    """
    if os.path.exists(os.path.expanduser(name_or_path)):
        return None
    found = parse(name_or_path)
    if found is None or (found.file and not names_one_file(found.file)):
        return None
    return found.repository
