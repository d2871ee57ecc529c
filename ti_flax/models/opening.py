"""From what a user gives to a source: a folder, a Hub repository or a file, or several.

What the files leave open is told in one line, with the rule that decided.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.models import (
    locate,
    single_file,
    single_file_configs,
    single_file_contents,
)
from ti_flax.models.assembled import Assembled
from ti_flax.models.families import parts as parts_of
from ti_flax.models.single_file import SingleFile
from ti_flax.models.sources import DiffusersFolder, Source
from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)
_KEY = "pretrained_model_name_or_path"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class Choices(NamedTuple):
    """`config.checkpoint_keys.CheckpointKeys`: what a model's files do not say."""

    vae: str | None = None
    text_encoder: str | None = None
    text_encoder_2: str | None = None
    ema: bool = False
    prediction_type: str | None = None
    rescale_betas_zero_snr: bool | None = None

    @classmethod
    def of(cls, keys: Any) -> "Choices":
        """Of a group of keys that has them by these names."""
        return cls(**{name: getattr(keys, name) for name in cls._fields})

    def noise(self) -> dict[str, Any]:
        """The settings of the scheduler that are overruled."""
        said = {
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }
        return {key: value for key, value in said.items() if value is not None}


class Opened(NamedTuple):
    """A source; `fetch` downloads the weights of the parts, where they are not here."""

    source: Source
    fetch: Callable[[Iterable[str]], None]


def open_source(
    name_or_path: str, revision: str | None, variant: str | None, choices: Choices
) -> Opened:
    """Finds the model's settings and files; no weights are downloaded yet.

    Raises `UserError` where something is not there, or is no model.
    """
    file = locate.find_file(_KEY, name_or_path, revision)
    if file is not None:
        opened = _open_file(file, choices)
    else:
        opened = _open_folder(name_or_path, revision, variant, choices)
    others: dict[str, Opened] = {}
    if choices.vae is not None:
        others |= _parts_from("vae", choices.vae, ["vae"], opened.source)
    if choices.text_encoder is not None:
        wanted = _text_encoders(opened.source, choices.text_encoder_2 is None)
        others |= _parts_from(
            "text_encoder", choices.text_encoder, wanted, opened.source
        )
    if choices.text_encoder_2 is not None:
        name = "text_encoder_2"
        if name not in _text_encoders(opened.source, True):
            raise UserError(
                f"{name}: {name_or_path} has one text encoder; leave it out, or give "
                "an SDXL model"
            )
        others |= _parts_from(name, choices.text_encoder_2, [name], opened.source)
    return _joined(opened, others) if others else opened


def _joined(base: Opened, others: Mapping[str, Opened]) -> Opened:
    def fetch(parts: Iterable[str]) -> None:
        parts = list(parts)
        base.fetch(part for part in parts if part not in others)
        for part in parts:
            if part in others:
                others[part].fetch([part])

    sources = {part: opened.source for part, opened in others.items()}
    return Opened(Assembled(base.source, sources), fetch)


def _open_file(file: Path, choices: Choices) -> Opened:
    source = single_file.open_file(
        file, choices.ema, choices.prediction_type, choices.rescale_betas_zero_snr
    )
    decided = source.prediction
    _log.info(
        "%s: %s, prediction_type %s%s (%s)",
        file.name,
        single_file.NAMES[source.kind],
        decided.prediction_type,
        " with zero terminal SNR" if decided.zero_terminal_snr else "",
        decided.rule,
    )
    if single_file_contents.has_averages(source.contents) and not choices.ema:
        _log.info("%s: has averaged weights (EMA), which ema true takes", file.name)
    return Opened(source, _nothing)


def _open_folder(
    name_or_path: str, revision: str | None, variant: str | None, choices: Choices
) -> Opened:
    if choices.ema:
        raise UserError(
            f"ema: {name_or_path} is no single file; of a folder, variant says which "
            "weights are taken"
        )
    found = locate.find_model(name_or_path, revision)
    source = DiffusersFolder(found.folder, variant)
    noise, scheduler = choices.noise(), source.config("scheduler")
    for key, value in noise.items():
        if scheduler.get(key) != value:
            _log.info(
                "%s: %s in place of the scheduler's %s", key, value, scheduler.get(key)
            )

    def fetch(parts: Iterable[str]) -> None:
        found.fetch_weights(map(source.name_of, parts), variant)

    return Opened(source, fetch)


def _nothing(parts: Iterable[str]) -> None:
    """A file is there as a whole."""


def _text_encoders(source: Source, all_of_them: bool) -> list[str]:
    there = [part for part in parts_of(source.config("unet")) if part in _TEXT_ENCODERS]
    return there if all_of_them else there[:1]


def _parts_from(
    key: str, name_or_path: str, parts: Collection[str], base: Source
) -> dict[str, Opened]:
    """The parts that a folder, a repository or a file gives in place of the base's.

    It has to have the one that is called as its key, the others may be missing.
    """
    file = locate.find_file(key, name_or_path, None)
    if file is not None:
        kind = _kind_of(base)
        source = single_file.open_parts(file, parts, kind, required=key)
        return {part: Opened(source, _nothing) for part in source.parts}
    found = locate.find_part(key, parts, name_or_path)
    inside = [part for part in parts if os.path.exists(found.folder / part)]
    if key in inside:
        whole = DiffusersFolder(found.folder)
        opened = Opened(whole, lambda wanted: found.fetch_weights(wanted, None))
        return dict.fromkeys(inside, opened)
    if not os.path.exists(found.folder / "config.json"):
        raise UserError(
            f"{key}: {name_or_path} has neither a folder {key} nor a config.json of "
            "its own; give a model in diffusers' layout, or that part of one"
        )

    def fetch(wanted: Iterable[str]) -> None:
        found.fetch_weights(wanted, None, alone=True)

    return {key: Opened(DiffusersFolder(found.folder, alone=key), fetch)}


def _kind_of(source: Source) -> str:
    if isinstance(source, SingleFile):
        return source.kind
    if isinstance(source, DiffusersFolder) and source.is_ldm:
        return "ldm"
    return single_file_configs.kind_of_settings(source.config("unet"))
