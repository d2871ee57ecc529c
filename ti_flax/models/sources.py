"""Where a model's weights come from: the seam beside `models.family`.

`Source` is what loading asks for. Its first value is `DiffusersFolder`, a folder in
diffusers' layout, downloaded where it is a repository of the Hub.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import safetensors

from ti_flax.hub.ids import is_repository
from ti_flax.runtime.errors import UserError, one_line


class Tensor(NamedTuple):
    """A tensor of a weight file that has not been read yet."""

    key: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@runtime_checkable
class Source(Protocol):
    """A model's files, whatever their layout; `part` is a name such as `unet`."""

    def config(self, part: str) -> Mapping[str, Any]:
        """The settings of a part, as its config.json has them."""

    def tensors(self, part: str) -> Iterator[Tensor]:
        """Every tensor of a part, under the key that the file has."""

    def fingerprint(self, parts: Iterable[str]) -> str:
        """SHA-256 over settings and weights of the parts, in hexadecimal."""


class DiffusersFolder(NamedTuple):
    """A folder with a folder a part; `variant` names its weight files, such as fp16."""

    folder: Path
    variant: str | None = None

    def config(self, part: str) -> Mapping[str, Any]:
        if part == "model_index":
            # An SDXL folder put together by hand may lack it.
            path = self.folder / "model_index.json"
            return read_json(path) if path.exists() else {}
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_json(self.folder / part / name)

    def tensors(self, part: str) -> Iterator[Tensor]:
        for file in self.weight_files(part):
            with _open(file) as opened:
                # A list: the file is closed while its tensors are read one by one.
                shapes = [
                    (key, tuple(opened.get_slice(key).get_shape()))
                    for key in opened.keys()  # noqa: SIM118, not a dictionary
                ]
            for key, shape in shapes:
                yield Tensor(key, shape, functools.partial(_read, file, key))

    def fingerprint(self, parts: Iterable[str]) -> str:
        paths = [self.folder / "scheduler" / "scheduler_config.json"]
        for part in parts:
            paths += [self.folder / part / "config.json", *self.weight_files(part)]

        def digest(path: Path) -> bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()

        # hashlib lets other threads run: gigabytes take seconds.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(digest, paths))).hexdigest()

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of a part."""
        return weight_files(self.folder / part, self.variant)


STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_TEXTS = ("json", "txt")


def find_folder(
    name_or_path: str,
    revision: str | None,
    variant: str | None,
    download_weights: bool = True,
) -> Path:
    """The local folder of a model, downloaded from the Hub when it is a repository id.

    Only the files that training and generating read are downloaded; what the cache
    holds is not fetched again, and without a network the cache alone serves.
    """
    suffix = f".{variant}" if variant else ""
    patterns = ["model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*"]
    for component, stem in STEMS.items():
        patterns.append(f"{component}/config.json")
        if not download_weights:
            continue
        patterns += [
            f"{component}/{stem}{suffix}.safetensors",
            f"{component}/{stem}.safetensors.index{suffix}.json",
            f"{component}/{stem}{suffix}-*-of-*.safetensors",
        ]
    return _local_folder(
        "pretrained_model_name_or_path", name_or_path, revision, patterns
    )


def find_tokenizer(name_or_path: str, revision: str | None) -> Path:
    """The tokenizer's folder in a model's folder or repository, or one by itself."""
    patterns = [f"{folder}*.{end}" for folder in ("", "tokenizer/") for end in _TEXTS]
    folder = _local_folder("tokenizer_name", name_or_path, revision, patterns)
    nested = folder / "tokenizer"
    return nested if nested.is_dir() else folder


def _local_folder(
    key: str, name_or_path: str, revision: str | None, patterns: list[str]
) -> Path:
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return path
    if path.exists() or not is_repository(name_or_path):
        raise UserError(
            f"{key}: no folder {name_or_path!r}, and it is no Hub repository id "
            "(owner/name); give one of the two"
        )
    # Slow to import, and not needed for a local folder.
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name_or_path, revision=revision, allow_patterns=patterns
            )
        )
    except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError) as error:
        reason = one_line(error)
        raise UserError(
            f"{key}: cannot fetch {name_or_path!r} from the Hub ({reason}); check the "
            "name, the network and your access, or give a folder"
        ) from error


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of one network: a single one, or those of an index."""
    stem, suffix = STEMS[folder.name], f".{variant}" if variant else ""
    single = folder / f"{stem}{suffix}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {index.name} names {', '.join(missing)}, which are not "
                "there; download the model again"
            )
        return [folder / shard for shard in shards]
    found = sorted(path.name for path in folder.glob(f"{stem}*"))
    raise UserError(
        f"{folder}: expected {single.name}, found {', '.join(found) or 'no weights'}; "
        "give a folder or a revision with safetensors, and `variant` as its files say"
    )


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; expected a Stable Diffusion model in diffusers' "
            "layout (text_encoder, unet, vae, scheduler, tokenizer)"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable JSON ({one_line(error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a JSON object, found a {type(content).__name__}; "
            "download it again"
        )
    return content


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected a safetensors file, found one that cannot be read "
            f"({one_line(error)}); download it again"
        ) from error


def _read(file: Path, key: str) -> np.ndarray:
    with safetensors.safe_open(file, framework="numpy") as opened:
        return opened.get_tensor(key)
