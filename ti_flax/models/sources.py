"""Where a model's weights come from: the seam beside `models.family`.

`Source` is what loading asks for. Its first value is `DiffusersFolder`, a folder in
diffusers' layout; `models.locate` finds it.
"""

import concurrent.futures
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ti_flax.models import safetensors_weights, torch_weights, weight_files
from ti_flax.models.tensors import Tensor
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError, shown
from ti_flax.runtime.regular_files import read_json, sha256

_log = logging.getLogger(__name__)
# Where the pipeline of latent diffusion with BERT keeps parts under other names.
LDM_FOLDERS: Mapping[str, str] = MappingProxyType(
    {"text_encoder": "bert", "vae": "vqvae"}
)
_MISSING = (
    "expected a Stable Diffusion model in diffusers' layout (text_encoder, unet, vae, "
    "scheduler, tokenizer)"
)


@runtime_checkable
class Source(Protocol):
    """A model's files, whatever their layout; `part` is a name such as `unet`."""

    @property
    def path(self) -> Path:
        """The folder or the file that the model is."""

    def config(self, part: str) -> Mapping[str, Any]:
        """The settings of a part, as its config.json has them."""

    def tensors(self, part: str) -> Iterator[Tensor]:
        """Every tensor of a part, under the key of diffusers or transformers."""

    def tokenizer(self, name: str) -> Path:
        """The folder of a tokenizer, such as `tokenizer_2`."""

    def copy_part(self, part: str, folder: Path) -> None:
        """Writes a part's config.json and weights into a folder, for diffusers.

        Raises `OSError` where the system refuses.
        """

    def misfit(self, part: str, reasons: str) -> str:
        """What to say where the tensors are not those that the settings ask for."""

    def fingerprint(self, parts: Iterable[str]) -> str:
        """SHA-256 over settings and weights of the parts, in hexadecimal."""


class DiffusersFolder(NamedTuple):
    """A folder with a folder a part; `variant` names its weight files, such as fp16.

    The folder is itself that of the part `alone`, where a repository has one only.
    """

    folder: Path
    variant: str | None = None
    alone: str | None = None

    @property
    def path(self) -> Path:
        return self.folder

    def config(self, part: str) -> Mapping[str, Any]:
        if part == "model_index":
            # An SDXL folder put together by hand may lack it.
            path = self.folder / "model_index.json"
            return read_json(path, _MISSING) if os.path.exists(path) else {}
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = self._place(part) / name
        if part == "unet" and not os.path.lexists(path):
            self._check_pipeline()
        return read_json(path, _MISSING)

    def tensors(self, part: str) -> Iterator[Tensor]:
        chosen, files = self.weights(part)
        if chosen.variant != self.variant:
            asked = (
                f"of variant {self.variant}" if self.variant else "without a variant"
            )
            _log.info("%s: no weights %s, reading %s", part, asked, chosen.name)
        for file in files:
            reader = torch_weights if file.suffix == ".bin" else safetensors_weights
            yield from reader.read(file)

    def tokenizer(self, name: str) -> Path:
        return self.folder / name

    def copy_part(self, part: str, folder: Path) -> None:
        """The files as they are, a variant's under the names without it."""
        folder.mkdir(exist_ok=True)
        theirs = self._place(part)
        chosen, files = self.weights(part)
        copy_file(folder / "config.json", theirs / "config.json")
        if chosen.sharded:
            # Shards keep their names, by which the index finds them.
            for path in files:
                copy_file(folder / path.name, path)
            files = [theirs / chosen.name]
        for path in files:
            plain = path.name.replace(f".{chosen.variant}.", ".")
            copy_file(folder / plain, path)

    def misfit(self, part: str, reasons: str) -> str:
        return (
            f"{part}: the weights do not fit config.json ({reasons}); use the two "
            "files of one model"
        )

    def fingerprint(self, parts: Iterable[str]) -> str:
        paths = [self.folder / "scheduler" / "scheduler_config.json"]
        if self.alone:
            paths = []
        for part in parts:
            paths += [self._place(part) / "config.json", *self.weights(part)[1]]

        # hashlib lets other threads run: gigabytes take seconds.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(sha256, paths))).hexdigest()

    def weights(self, part: str) -> tuple[weight_files.Chosen, list[Path]]:
        """Which weights of a part are read, and their files.

        Raises `UserError` where there are none.
        """
        name = self.name_of(part)
        inside = "" if part == self.alone else name
        return weight_files.find(self.folder, name, self.variant, inside)

    @property
    def is_ldm(self) -> bool:
        """Whether the folder is of the pipeline of latent diffusion with BERT."""
        return self.name_of("text_encoder") == LDM_FOLDERS["text_encoder"]

    def name_of(self, part: str) -> str:
        """The name of a part's folder, as the pipeline has it that is there."""
        other = LDM_FOLDERS.get(part)
        if other is None or os.path.lexists(self.folder / part):
            return part
        return other if os.path.lexists(self.folder / other) else part

    def _check_pipeline(self) -> None:
        """Names a pipeline that has no UNet: nothing of it is missing."""
        index = self.config("model_index")
        if "_class_name" in index and "unet" not in index:
            raise UserError(
                f"unet: a {shown(index['_class_name'])} has none; use a Stable "
                "Diffusion 1.x, 2.x or SDXL model"
            )

    def _place(self, part: str) -> Path:
        if part == self.alone:
            return self.folder
        return self.folder / self.name_of(part)


def copy_file(file: Path, source: Path) -> None:
    with atomic.atomic_path(file) as temporary:
        shutil.copyfile(source, temporary)
