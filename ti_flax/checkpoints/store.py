"""Checkpoints: all that a run needs to go on, and what it must be the same in.

A checkpoint holds `step.State`, a few kilobytes, and a description of the run. The
frozen model and the pictures are not in it, their fingerprints are. Only the first
process writes and reads, so that the hosts need no common disk.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ti_flax.checkpoints import identity
from ti_flax.config import run_config
from ti_flax.runtime import hosts
from ti_flax.runtime.errors import UserError, one_line
from ti_flax.step.state import State

FOLDER_NAME = "checkpoints"


def folder_of(config: run_config.Config) -> epath.Path:
    """The folder of a run's checkpoints, local or in a bucket."""
    if config.checkpoint_dir is not None:
        return epath.Path(config.checkpoint_dir)
    return epath.Path(config.output_dir).absolute() / FOLDER_NAME


def find(config: run_config.Config) -> identity.FoundCheckpoint | None:
    """The checkpoint that `resume_from_checkpoint` asks for; the configuration fits it.

    None when it asks for none, or for the latest and there is not any.

    Raises:
        UserError: there is no such checkpoint, or it is of another configuration.
    """
    wanted = config.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted == "latest":
        folder = folder_of(config)
        steps = finished_steps(folder)
        if not steps:
            return None
        number = steps[-1]
    else:
        path = epath.Path(wanted)
        path = path if "://" in wanted else path.absolute()
        folder, number = path.parent, int(path.name) if path.name.isdecimal() else -1
        if number not in finished_steps(folder):
            raise UserError(
                f"resume_from_checkpoint: no checkpoint {wanted}; give latest or the "
                f"folder of one, such as {folder_of(config) / '500'}"
            )
    found = identity.FoundCheckpoint(folder, number, _read_run(folder, number))
    identity.check_config(found, config)
    return found


def restore(
    found: identity.FoundCheckpoint | None, initial: State
) -> tuple[int, State]:
    """Steps taken, and the state after them, in host memory of every process.

    Args:
        found: the checkpoint; None, or nothing but the first process's, elsewhere.
        initial: the state before the first step, returned where there is no checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    number, state = 0, jax.tree.map(np.array, initial)
    if found is not None:
        number, state = found.step, _read_state(found, state)
    if jax.process_count() == 1:
        return number, state
    hosts.barrier()  # reading took process 0 longer than networks wait
    number, state = multihost_utils.broadcast_one_to_all((np.int32(number), state))
    return int(number), jax.tree.map(np.asarray, state)


class Checkpoints:
    """Writes the checkpoints of a run; a context manager for its first process."""

    def __init__(
        self, folder: epath.Path, total_limit: int | None, run: Mapping[str, Any]
    ) -> None:
        """Takes away what earlier runs left half written.

        Args:
            folder: gets a folder for each checkpoint, by its step.
            total_limit: how many are kept, the newest; None keeps all.
            run: what they say of their run, from `describe`.
        """
        self._folder, self._run = folder, run
        self._quiet = _quietly()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=total_limit,
            cleanup_tmp_directories=True,
            create=False,  # Orbax does not for one process of several
            multiprocessing_options=_only_first_process(),
        )
        with _one_line_errors(self._folder), _quietly():
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._quiet)
            stack.callback(self._manager.close)
            try:
                self.wait()
            except UserError:
                if kind is None:
                    raise

    def save(self, number: int, state: State) -> None:
        """Begins to write the state after `number` steps; the state may be given up.

        Raises:
            UserError: the disk is full or refuses, now or at the checkpoint before.
        """
        with _one_line_errors(self._folder):
            if number in self._manager.all_steps():
                return
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(np.array, state)),
                    run=ocp.args.JsonSave(self._run),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk; raises as `save` does."""
        with _one_line_errors(self._folder):
            self._manager.wait_until_finished()


@contextlib.contextmanager
def _one_line_errors(folder: epath.Path) -> Iterator[None]:
    """Says in one line why a checkpoint could not be written, and what is left."""
    try:
        yield
    # TensorStore reports what the system says as a ValueError.
    except (OSError, ValueError, ImportError) as error:
        told = re.search(r"([^:\[\]]+) \[os_error_code", str(error))
        reason = told[1].strip() if told else _reason(error)
        steps = finished_steps(folder)
        last = f"that of step {steps[-1]} is whole" if steps else "there is none yet"
        raise UserError(
            f"cannot write a checkpoint to {folder}: {reason}; {last}; make room "
            "or choose another checkpoint_dir, then run again with "
            "resume_from_checkpoint latest"
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
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


def finished_steps(folder: epath.Path) -> list[int]:
    """Checkpoints that are whole: Orbax writes them to another name and renames."""
    try:
        if not folder.is_dir():
            return []
        return sorted(ocp.utils.checkpoint_steps(folder))
    except (OSError, ImportError) as error:
        raise UserError(f"cannot read {folder}: {_reason(error)}") from error


def _read_run(folder: epath.Path, number: int) -> Mapping[str, Any]:
    return _read(folder, number, "run", ocp.args.JsonRestore())


def _read_state(found: identity.FoundCheckpoint, like: State) -> State:
    state = _read(found.folder, found.step, "state", ocp.args.StandardRestore(like))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (like, state))
    if shapes[0] != shapes[1]:
        raise UserError(_damaged(found.folder, found.step, "other shapes than the run"))
    return state


def _read(folder: epath.Path, number: int, item: str, args: Any) -> Any:
    wanted = ocp.args.Composite(**{item: args})
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quietly())
            options = ocp.CheckpointManagerOptions(
                read_only=True, multiprocessing_options=_only_first_process()
            )
            manager = stack.enter_context(
                ocp.CheckpointManager(folder, options=options)
            )
            return manager.restore(number, args=wanted)[item]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(_damaged(folder, number, _reason(error))) from error


def _damaged(folder: epath.Path, number: int, reason: str) -> str:
    return (
        f"the checkpoint {folder / str(number)} is damaged ({reason}); delete it and "
        "run again: the one before it serves"
    )


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "strerror", None) or error)
