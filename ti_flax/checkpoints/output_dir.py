"""What a run may do to its output folder, and that it is alone there."""

import contextlib
import logging
import os
from types import TracebackType

import filelock

from ti_flax.checkpoints import identity, orbax_folder, store
from ti_flax.config import run_config
from ti_flax.runtime import atomic
from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"


class RunFolder:
    """The output folder while a run has it; a context manager of the first process.

    The system gives its lock up with the process, however that ends: the empty file
    that a killed run leaves blocks nobody.
    """

    def __init__(self, config: run_config.Config) -> None:
        self._config = config
        self._folder = config.output_dir
        self._lock: filelock.BaseFileLock | None = None
        # The checkpoint to go on from.
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
            if (self._folder / LOCK_NAME).exists():
                self._take()
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
        """Makes the folder if need be, and takes away what the run replaces."""
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take()
            # Another run may have come and gone in the meantime.
            self._check_content()
        atomic.remove_leftovers(self._folder)
        for number in self._later_checkpoints():
            (store.folder_of(self._config) / str(number)).rmtree()
        with atomic.atomic_path(self._folder / CONFIG_NAME) as path:
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

    def _take(self) -> None:
        self._lock = filelock.FileLock(
            self._folder / LOCK_NAME, timeout=0, fallback_to_soft=False
        )
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"output_dir: another run is writing {self._folder}; wait for its end, "
                "or choose another folder"
            ) from None
        # File systems without locks, such as some of NFS.
        except (OSError, NotImplementedError) as error:
            _log.warning(
                "output_dir: %s cannot be locked (%s); see to it that no other run "
                "writes there",
                self._folder,
                getattr(error, "strerror", None) or error,
            )

    def _give_up(self) -> None:
        if self._lock is not None and self._lock.is_locked:
            # Before the release, so that it is ours. Windows refuses this of an open
            # file, and filelock does it there.
            with contextlib.suppress(OSError):
                (self._folder / LOCK_NAME).unlink()
            self._lock.release()
        self._lock = None

    def _check_content(self) -> None:
        """Nothing of value may be lost, unless `overwrite_output_dir` says so."""
        if self._config.overwrite_output_dir:
            return
        later = self._later_checkpoints()
        if later:
            raise UserError(
                f"{store.folder_of(self._config)} has checkpoints of later steps "
                f"(up to {later[-1]}); resume_from_checkpoint latest goes on from "
                "there, overwrite_output_dir replaces them"
            )
        if self._is_used() and not self._is_own():
            raise UserError(
                f"output_dir: {self._folder} is not empty; choose another folder, set "
                "resume_from_checkpoint to latest to go on with its run, or "
                "overwrite_output_dir to replace what a run wrote there"
            )

    def _later_checkpoints(self) -> list[int]:
        start = self.found.step if self.found else -1
        folder = store.folder_of(self._config)
        return [
            number for number in orbax_folder.finished_steps(folder) if number > start
        ]

    def _is_used(self) -> bool:
        return self._folder.is_dir() and any(
            path.name != LOCK_NAME and not atomic.is_leftover(path)
            for path in self._folder.iterdir()
        )

    def _is_own(self) -> bool:
        """Whether the run that this one goes on with wrote the folder."""
        if self._config.resume_from_checkpoint is None:
            return False
        if self.found and self.found.folder == store.folder_of(self._config):
            return True
        try:
            path = str(self._folder / CONFIG_NAME)
            theirs = run_config.load_config(["--config", path])
        except UserError:
            return False
        ours = identity.config_fingerprint(self._config)
        return identity.config_fingerprint(theirs) == ours
