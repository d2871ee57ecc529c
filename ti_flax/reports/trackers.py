"""Where numbers and pictures of a run go: TensorBoard or Weights & Biases.

A sink takes what belongs to a step; steps never go down.
"""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ti_flax.runtime.errors import UserError, one_line

_EVENT_FILES = "events.out.tfevents.*"
_OWN_SUFFIX = re.compile(r"\.\d{9}$")
_WANDB_ID = "wandb_id.txt"


def names(report_to: str) -> tuple[str, ...]:
    """The trackers that `report_to` (tensorboard, wandb, all, none) means.

    All are those that are installed; TensorBoard's writer is a part of the package.
    """
    if report_to == "all":
        has_wandb = importlib.util.find_spec("wandb") is not None
        return ("tensorboard", "wandb") if has_wandb else ("tensorboard",)
    return () if report_to == "none" else (report_to,)


def check(report_to: str) -> None:
    """Raises UserError when what `report_to` names is not installed."""
    if "wandb" in names(report_to):
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                "report_to: wandb is not installed; `pip install wandb`, or choose "
                "tensorboard or none"
            ) from error


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        import tensorboardX

        inside = os.path.realpath(folder).startswith(
            os.path.realpath(config["output_dir"]) + os.sep
        )
        # Elsewhere, those of other runs may be.
        if start == 0 and inside:
            for path in folder.glob(_EVENT_FILES):
                if _OWN_SUFFIX.search(path.name):
                    path.unlink()
        # By its name alone, which has the second, a file could replace that of the run
        # before; TensorBoard reads them in the order of their names.
        self._writer = tensorboardX.SummaryWriter(
            str(folder),
            purge_step=start + 1 if start else None,
            filename_suffix=f".{start:09d}",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(
        self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def text(self, step: int, name: str, markdown: str) -> None:
        self._writer.add_text(name, markdown, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; resuming from a step continues the same run.

    It is called as the folder of results, unless WANDB_NAME says otherwise (and
    WANDB_PROJECT of which project it is). A process may have several at a time.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        import wandb

        self._wandb = wandb
        id_file = folder / _WANDB_ID
        known = start > 0 and id_file.exists()
        own_name = Path(config["output_dir"]).name
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "textual_inversion"),
                dir=str(folder),
                config=dict(config),
                id=id_file.read_text() if known else None,
                resume="allow",
                name=os.environ.get("WANDB_NAME", own_name),
                reinit="create_new",
            )
        except wandb.Error as error:
            reason = one_line(error)
            raise UserError(
                f"report_to: wandb does not start ({reason}); log in with `wandb "
                "login`, set WANDB_MODE=offline, or choose tensorboard"
            ) from error
        id_file.write_text(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(
        self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        self._run.log({name: markdown}, step=step)

    def close(self) -> None:
        self._run.finish()


class Several:
    """What several trackers are told, or none."""

    def __init__(self, trackers: Sequence[TensorBoard | Wandb]) -> None:
        self._trackers = trackers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def picture(
        self, step: int, name: str, picture: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        for tracker in self._trackers:
            tracker.picture(step, name, picture)

    def text(self, step: int, name: str, markdown: str) -> None:
        for tracker in self._trackers:
            tracker.text(step, name, markdown)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_sink(
    report_to: str, folder: Path, config: Mapping[str, Any], start: int
) -> Several:
    """Opens what `report_to` means, by `names`.

    Args:
        folder: for its files.
        config: the settings of the run, as JSON.
        start: steps that a run before this one has taken and written to `folder`; what
            it wrote of later steps is not shown any more. With 0, what another run
            left there is removed.
    """
    classes = {"tensorboard": TensorBoard, "wandb": Wandb}
    wanted = names(report_to)
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
    return Several([classes[name](folder, config, start) for name in wanted])
