"""A folder of checkpoints as Orbax reads it: quiet, and under any name.

Orbax gives TensorStore its paths and globs them, so that relative ones are refused, a
backslash becomes a slash, and [brackets] stand for one of the letters in them.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ti_flax.checkpoints import identity
from ti_flax.runtime.errors import UserError, one_line
from ti_flax.step.state import State

_PATTERN = re.compile(r"[\[\]*?\\]")
_STEP = re.compile("[0-9]{1,10}")
# What TensorStore adds to an error: [os_error_code='28'] and its like.
_NOTES = r"(?: \[[\w ]+='[^']*'\])*"


def absolute(text: str | os.PathLike[str]) -> epath.Path:
    """A folder of checkpoints by its path or its address, such as gs://bucket/cat."""
    path = epath.Path(text)
    return path if is_remote(path) else path.absolute()


def is_remote(folder: epath.Path) -> bool:
    return re.match("[A-Za-z0-9]+:/", os.fspath(folder)) is not None


@contextlib.contextmanager
def opened(folder: epath.Path, **options: Any) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder that exists, through a link where its name would be a pattern."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quietly())
        if _PATTERN.search(os.fspath(folder)) and not is_remote(folder):
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ti_flax-"))
            link = os.path.join(place, "checkpoints")
            os.symlink(folder, link, target_is_directory=True)
            folder = epath.Path(link)
        options = ocp.CheckpointManagerOptions(
            multiprocessing_options=_only_first_process(), **options
        )
        manager = ocp.CheckpointManager(folder, options=options)
        stack.callback(manager.close)
        yield manager


def finished_steps(folder: epath.Path) -> list[int]:
    """Checkpoints that are whole: Orbax writes them to another name and renames."""
    try:
        if not folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in folder.iterdir()
            if _STEP.fullmatch(path.name) and is_checkpoint(path)
        )
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"cannot read {folder}: {reason(error)}") from error


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a run wrote this, not what else may have a number for its name."""
    return any((path / item).is_dir() for item in ("run", "state"))


def read_run(folder: epath.Path, number: int) -> Mapping[str, Any]:
    """What the checkpoint of step `number` says of its run, from `identity.describe`.

    Raises `UserError` when it cannot be read.
    """
    with _unreadable(folder, number), opened(folder, read_only=True) as manager:
        wanted = ocp.args.Composite(run=ocp.args.JsonRestore())
        return manager.restore(number, args=wanted)["run"]


def read_state(found: identity.FoundCheckpoint, like: State) -> State:
    """The state in a checkpoint; raises `UserError` when it is not shaped `like`."""
    folder, number = found.folder, found.step
    with _unreadable(folder, number), opened(folder, read_only=True) as manager:
        return restored(manager, number, like)


def restored(manager: ocp.CheckpointManager, number: int, like: State) -> State:
    """`read_state` of an open folder; raises what Orbax raises."""
    wanted = ocp.args.Composite(state=ocp.args.StandardRestore(as_saved(like)))
    state = like._replace(**manager.restore(number, args=wanted)["state"])
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (like, state))
    if shapes[0] != shapes[1]:
        raise ValueError("other shapes than the run")
    return state


def as_saved(state: State) -> dict[str, Any]:
    """The state as a checkpoint has it: without what it lacks.

    To Orbax an empty field is another tree than none, which earlier versions had.
    """
    return {key: each for key, each in state._asdict().items() if each is not None}


@contextlib.contextmanager
def _unreadable(folder: epath.Path, number: int) -> Iterator[None]:
    """Says in one line why a checkpoint cannot be read, and what may be done.

    Not to delete it: what fails may be the disk of the moment.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        before = [step for step in finished_steps(folder) if step < number]
        advice = (
            f"move it to another folder and run again: latest is then {before[-1]}"
            if before
            else "there is none before it; start anew in another output_dir"
        )
        raise UserError(
            f"the checkpoint {folder / str(number)} cannot be read "
            f"({reason(error)}); {advice}"
        ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leaves it to the exception to say what failed.

    Orbax logs, with their stacks, what its threads raise and it raises again. What
    TensorStore still has to do then finds nobody waiting, and complains, maybe late.
    """
    absl, hook = logging.getLogger("absl"), sys.unraisablehook
    level = absl.level
    absl.setLevel(logging.CRITICAL)

    def show(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = show
    try:
        yield
        sys.unraisablehook = hook
    finally:
        absl.setLevel(level)


def _only_first_process() -> ocp.options.MultiprocessingOptions:
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="ti_flax"
    )


def reason(error: BaseException) -> str:
    """Why, in a line: what the system says, where TensorStore quotes it."""
    # Before notes such as [source locations='...']; TensorStore up to 0.1.85, Colab's
    # and Kaggle's, may leave out that of the code.
    told = re.search(rf"([^:\[\]]+){_NOTES} \[os_error_code", str(error))
    told = told or re.search(rf"(?s)^[A-Z_]+: .*: ([^:\[\]]+){_NOTES}$", str(error))
    if told:
        return told[1].strip()
    return one_line(getattr(error, "strerror", None) or error)
