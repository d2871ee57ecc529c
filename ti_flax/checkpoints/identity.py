"""What a resumed run must share with its checkpoint."""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

import ti_flax
from ti_flax.config import run_config
from ti_flax.config.natures import KEPT, TRAVELS, keys_of
from ti_flax.runtime.errors import UserError
from ti_flax.step.optimizer import schedule_has_end

_log = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class FoundCheckpoint(NamedTuple):
    """A checkpoint to resume: `folder / str(step)`, and what it says of its run."""

    folder: epath.Path
    step: int
    run: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.folder / str(self.step))


def describe(
    config: run_config.Config,
    fingerprints: Mapping[str, str],
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of its run; `start`, where several were tried."""
    return {
        "start": start,
        "config": config.model_dump(mode="json"),
        "config_fingerprint": config_fingerprint(config),
        "fingerprints": dict(fingerprints),
        "versions": _versions(),
    }


def fingerprint(*parts: bytes | np.ndarray) -> str:
    """SHA-256 over the parts, in hexadecimal."""
    return hashlib.sha256(b"".join(map(bytes, parts))).hexdigest()


def config_fingerprint(config: run_config.Config) -> str:
    """Equal for configurations of which one may resume the other's run."""
    kept = json.dumps(_kept(config.model_dump(mode="json")), sort_keys=True)
    return fingerprint(kept.encode())


def check_fingerprints(found: FoundCheckpoint, fingerprints: Mapping[str, str]) -> None:
    """Raises `UserError` when the frozen model or the data are not the checkpoint's.

    `fingerprints` are by the key of the configuration that says where the files are.
    One that the checkpoint lacks, as those of earlier versions may, is not compared.
    """
    saved = found.run["fingerprints"]
    for key, ours in fingerprints.items():
        if saved.get(key, ours) != ours:
            raise UserError(
                f"{key}: the checkpoint {found} was made with the fingerprint "
                f"{saved[key][:16]}, found {ours[:16]}; give what it was made with, or "
                "start anew in another output_dir"
            )
    saved = found.run["versions"]
    changed = [
        f"{name} {saved.get(name)} -> {ours}"
        for name, ours in _versions().items()
        if saved.get(name) != ours
    ]
    if changed:
        _log.warning(
            "the checkpoint is of other versions (%s): results agree to rounding, not "
            "to the bit",
            ", ".join(changed),
        )


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a resumed run must share."""
    kept = {
        key: values.get(key, default)
        for key, default in keys_of(run_config.Config, (TRAVELS, KEPT)).items()
    }
    examples = values["train_batch_size"] * values["gradient_accumulation_steps"]
    return kept | {"train_batch_size * gradient_accumulation_steps": examples}


def check_config(found: FoundCheckpoint, config: run_config.Config) -> None:
    saved, ours = _kept(found.run["config"]), _kept(config.model_dump(mode="json"))
    changed = [
        f"{key} was {saved[key]}, is {value}"
        for key, value in ours.items()
        if saved[key] != value
    ]
    if changed:
        raise UserError(
            f"resume_from_checkpoint: {found} is of another configuration "
            f"({'; '.join(changed)}); set it back, or choose another output_dir"
        )
    before = found.run["config"]["max_train_steps"]
    other_end = before != config.max_train_steps
    if other_end and schedule_has_end(config.lr_scheduler):
        _log.warning(
            "lr_scheduler %s ends at max_train_steps: %d steps were taken on the way "
            "to %d, from here it leads to %d",
            config.lr_scheduler,
            found.step,
            before,
            config.max_train_steps,
        )


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"ti_flax": ti_flax.__version__, **packages}
