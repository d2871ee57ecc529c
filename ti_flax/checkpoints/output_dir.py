"""The output folder: locked, and nothing in it overwritten without being asked."""

import os
from pathlib import Path
from types import TracebackType

from etils import epath

from ti_flax.checkpoints import identity, orbax_folder, store, written
from ti_flax.checkpoints.folder_lock import LOCK_NAME, FolderLock
from ti_flax.config import run_config
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError


class RunFolder:
    """The output folder, and that of checkpoints, while a run has them.

    A context manager of the first process.
    """

    def __init__(self, config: run_config.Config) -> None:
        self._config = config
        self._folder = config.output_dir
        self._locks = [FolderLock(self._folder, "output_dir")]
        checkpoints = store.folder_of(config)
        # A bucket has no locks; the store looks for other writers.
        if not orbax_folder.is_remote(checkpoints):
            # Also where it is in output_dir: another run may name it.
            self._locks.append(FolderLock(Path(checkpoints), "checkpoint_dir"))
        # The checkpoint to resume.
        self.found: identity.FoundCheckpoint | None = None

    def __enter__(self) -> "RunFolder":
        """Checks everything that can be known at the start, and writes nothing.

        Raises:
            UserError: the folder cannot be written, is another run's, or holds what
                the run would overwrite without being told to.
        """
        try:
            self._check_place()
            # A folder without it belongs to no run that is under way.
            for lock in self._locks:
                lock.take_if_used()
            self.found = store.find(self._config)
            self._check_content()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_up()

    def create(self) -> None:
        """Makes the folder if need be, and removes what the run replaces."""
        if any([lock.take() for lock in self._locks]):
            # Another run may have come and gone in the meantime.
            self._check_content()
        atomic.remove_leftovers(self._folder)
        for number in self._later_checkpoints():
            (store.folder_of(self._config) / str(number)).rmtree()
        with atomic.atomic_path(self._folder / written.CONFIG_NAME) as path:
            path.write_text(run_config.dump_yaml(self._config), encoding="utf-8")

    def _check_place(self) -> None:
        folder = self._folder
        if str(folder).startswith("gs:/"):
            raise UserError(
                "output_dir: pictures, metrics and learned_embeds go to a local "
                f"folder, found {folder}; give one, and the bucket as checkpoint_dir"
            )
        nearest = next(
            p for p in (folder, *folder.absolute().parents) if os.path.lexists(p)
        )
        if not nearest.is_dir():
            raise UserError(f"output_dir: {nearest} is a file; give a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"output_dir: {nearest} cannot be written to; choose another"
            )

    def _give_up(self) -> None:
        for lock in self._locks:
            lock.give_up()

    def _check_content(self) -> None:
        """Nothing of value may be lost, unless `overwrite_output_dir` says so.

        What no run wrote, and the checkpoints of another one, are not lost even then.
        """
        self._check_model_survives()
        self._check_checkpoints_are_own()
        if self._config.overwrite_output_dir:
            self._check_files_are_of_runs()
            return
        later = self._later_checkpoints()
        if later:
            raise UserError(
                f"{store.folder_of(self._config)} has checkpoints of later steps "
                f"(up to {later[-1]}); resume_from_checkpoint latest resumes from "
                "there, overwrite_output_dir replaces them"
            )
        if self._is_used() and not self._is_own():
            raise UserError(
                f"output_dir: {self._folder} is not empty; choose another folder, set "
                "resume_from_checkpoint to latest to resume its run, or "
                "overwrite_output_dir to replace what a run wrote there"
            )
        self._check_files_are_of_runs()

    def _check_model_survives(self) -> None:
        model = self._config.pretrained_model_name_or_path
        if os.path.realpath(model) == os.path.realpath(self._folder):
            raise UserError(
                f"output_dir: {self._folder} is the base model's own folder; choose "
                "another"
            )

    def _check_files_are_of_runs(self) -> None:
        # Only what stands in output_dir itself tells who wrote the rest of it.
        own = self.found and self.found.folder == self._default_checkpoints()
        foreign = written.not_of_a_run(
            self._folder,
            self._config.save_as_full_pipeline,
            self.found.run["config"] if own else None,
        )
        if foreign is not None:
            raise UserError(
                f"output_dir: {foreign} would be replaced, and no run wrote it; move "
                "it elsewhere, or choose another output_dir"
            )

    def _default_checkpoints(self) -> epath.Path:
        return orbax_folder.absolute(self._folder) / store.FOLDER_NAME

    def _check_checkpoints_are_own(self) -> None:
        folder = store.folder_of(self._config)
        if self._config.checkpoint_dir is None:
            return
        # `store.find` compared the configurations.
        if self.found and self.found.folder == folder:
            return
        steps = orbax_folder.finished_steps(folder)
        if not steps:
            return
        theirs = orbax_folder.read_run(folder, steps[-1])["config"]["output_dir"]
        if os.path.realpath(theirs) != os.path.realpath(self._folder):
            raise UserError(
                f"checkpoint_dir: {folder} has the checkpoints of the run that writes "
                f"{theirs}; give each run a folder of its own"
            )

    def _later_checkpoints(self) -> list[int]:
        start = self.found.step if self.found else -1
        folder = store.folder_of(self._config)
        return [
            number for number in orbax_folder.finished_steps(folder) if number > start
        ]

    def _is_used(self) -> bool:
        return self._folder.is_dir() and any(
            path.name != LOCK_NAME
            and not atomic.is_leftover(path)
            and not _is_unused(path)
            for path in self._folder.iterdir()
        )

    def _is_own(self) -> bool:
        """Whether the folder is of the run that this one resumes."""
        if self._config.resume_from_checkpoint is None:
            return False
        if self.found and self.found.folder == store.folder_of(self._config):
            return True
        try:
            path = str(self._folder / written.CONFIG_NAME)
            theirs = run_config.load_config(["--config", path])
        except UserError:
            return False
        ours = identity.config_fingerprint(self._config)
        return identity.config_fingerprint(theirs) == ours


def _is_unused(path: Path) -> bool:
    """Whether this is the folder of checkpoints before there is one."""
    if path.name != store.FOLDER_NAME or not path.is_dir():
        return False
    return {entry.name for entry in path.iterdir()} <= {LOCK_NAME}
