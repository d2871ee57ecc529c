"""Saving and resuming runs.

A checkpoint holds `step.State`, a few kilobytes, and a description of the run. The
frozen model and the pictures are not in it, their fingerprints are. Only the first
process writes and reads, so that the hosts need no common disk.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ti_flax.checkpoints import identity, orbax_folder
from ti_flax.config import run_config
from ti_flax.config.training_keys import OutputKeys
from ti_flax.runtime import hosts
from ti_flax.runtime.errors import UserError
from ti_flax.step.state import State

FOLDER_NAME = "checkpoints"


def folder_of(config: OutputKeys) -> epath.Path:
    """The folder of a run's checkpoints, local or in a bucket."""
    if config.checkpoint_dir is not None:
        return orbax_folder.absolute(config.checkpoint_dir)
    return orbax_folder.absolute(config.output_dir) / FOLDER_NAME


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
        steps = orbax_folder.finished_steps(folder)
        if not steps:
            return None
        number = steps[-1]
    else:
        path = orbax_folder.absolute(wanted)
        folder = path.parent
        # A number longer than any step is a name like another.
        number = int(path.name) if re.fullmatch("[0-9]{1,10}", path.name) else -1
        if number not in orbax_folder.finished_steps(folder):
            raise UserError(
                f"resume_from_checkpoint: no checkpoint {wanted}; give latest or the "
                f"folder of one, such as {folder_of(config) / '500'}"
            )
    run = orbax_folder.read_run(folder, number)
    found = identity.FoundCheckpoint(folder, number, run)
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
        UserError: the checkpoint cannot be read.
    """
    number, state = 0, jax.tree.map(np.array, initial)
    if found is not None:
        number, state = found.step, orbax_folder.read_state(found, state)
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
        """Removes what earlier runs left half written.

        Args:
            folder: gets a folder for each checkpoint, by its step.
            total_limit: how many are kept, the newest; None keeps all.
            run: what they say of their run, from `describe`.
        """
        self._folder, self._run, self._total_limit = folder, run, total_limit
        # The checkpoint that is being written.
        self._begun: tuple[int, State] | None = None
        self._steps: set[int] = set()
        with _one_line_errors(folder, self._steps), contextlib.ExitStack() as stack:
            folder.mkdir(parents=True, exist_ok=True)
            self._steps.update(orbax_folder.finished_steps(folder))
            self._manager = stack.enter_context(
                # Orbax does not create for one process of several.
                orbax_folder.opened(folder, cleanup_tmp_directories=True, create=False)
            )
            self._open = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        with self._open:
            try:
                self.wait()
            except UserError:
                if kind is None:
                    raise

    def save(self, number: int, state: State) -> None:
        """Begins to write the state after `number` steps; the state may be given up.

        Raises:
            UserError: the disk is full or refuses, now or at the checkpoint before;
                that could not be read back; another run writes here.
        """
        self.wait()
        if number in self._steps:
            return
        # A lock would have said so; buckets and some disks have none.
        foreign = set(orbax_folder.finished_steps(self._folder)) - self._steps
        if foreign:
            raise UserError(
                f"checkpoint_dir: another run writes to {self._folder}, too: step "
                f"{max(foreign)} is not of this run; give each run a folder of its own"
            )
        kept = jax.tree.map(np.array, state)
        with _one_line_errors(self._folder, self._steps):
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(orbax_folder.as_saved(kept)),
                    run=ocp.args.JsonSave(self._run),
                ),
                force=True,
            )
        self._begun = number, kept

    def wait(self) -> None:
        """Returns when all checkpoints are on the disk and were read back.

        Only then do they replace older ones. Raises as `save` does.
        """
        begun, self._begun = self._begun, None
        with _one_line_errors(self._folder, self._steps):
            self._manager.wait_until_finished()
            if begun is None:
                return
            number, state = begun
            _check_same(orbax_folder.restored(self._manager, number, state), state)
            self._steps.add(number)
            if self._total_limit is not None:
                for old in sorted(self._steps)[: -self._total_limit]:
                    self._manager.delete(old)
                    self._steps.remove(old)


def _check_same(read: State, written: State) -> None:
    pairs = zip(jax.tree.leaves(read), jax.tree.leaves(written), strict=True)
    # To the bit: a row may be NaN.
    if any(np.asarray(ours).tobytes() != theirs.tobytes() for ours, theirs in pairs):
        raise ValueError("it reads back as something else")


@contextlib.contextmanager
def _one_line_errors(folder: epath.Path, steps: Collection[int]) -> Iterator[None]:
    """Says in one line why a checkpoint could not be written, and which are whole."""
    try:
        yield
    # TensorStore reports what the system says as a ValueError.
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        last = f"that of step {max(steps)} is whole" if steps else "there is none yet"
        raise UserError(
            f"cannot write a checkpoint to {folder}: {orbax_folder.reason(error)}; "
            f"{last}; make room or choose another checkpoint_dir, then run again with "
            "resume_from_checkpoint latest"
        ) from error
