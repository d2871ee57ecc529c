"""One run at a time writes a folder."""

import contextlib
import logging
from pathlib import Path

import filelock

from ti_flax.runtime.errors import UserError

_log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


class FolderLock:
    """A locked file in a folder.

    The system gives the lock up with the process, however that ends: the empty file
    that a killed run leaves blocks nobody.
    """

    def __init__(self, folder: Path, key: str, name: str = LOCK_NAME) -> None:
        """`key` of the configuration says where the folder is, `name` is the file's."""
        self._folder, self._key, self._name = folder, key, name
        self._lock: filelock.BaseFileLock | None = None
        self._made = False

    def take_if_used(self) -> None:
        """Takes the lock where a run has one, and writes nothing elsewhere."""
        if (self._folder / self._name).exists():
            self.take()

    def take(self) -> bool:
        """Takes the lock, and makes the folder if need be; False when it was ours.

        Raises `UserError` when another run has it.
        """
        if self._lock is not None:
            return False
        self._made = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(
            self._folder / self._name, timeout=0, fallback_to_soft=False
        )
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self._key}: another run is writing {self._folder}; wait for its "
                "end, or choose another folder"
            ) from None
        # File systems without locks, such as some of NFS.
        except (OSError, NotImplementedError) as error:
            _log.warning(
                "%s: %s cannot be locked (%s); see to it that no other run writes "
                "there",
                self._key,
                self._folder,
                getattr(error, "strerror", None) or error,
            )
        return True

    def give_up(self) -> None:
        if self._lock is not None and self._lock.is_locked:
            # Before the release, so that it is ours. Windows refuses this of an open
            # file, and filelock does it there.
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink()
            self._lock.release()
        self._lock = None
        if self._made:
            # Only when nothing came into it.
            with contextlib.suppress(OSError):
                self._folder.rmdir()
