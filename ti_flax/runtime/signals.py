"""Graceful shutdown on SIGTERM and Ctrl-C.

A supervisor (SLURM, Kubernetes, a TPU VM that is preempted) sends SIGTERM and kills
half a minute later; a user presses Ctrl-C.
"""

import logging
import signal
import threading
from types import FrameType

from ti_flax.runtime import errors, hosts

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Listens while its context lasts; outside the main thread it hears nothing.

    Until `defer` there is nothing to save, and a signal ends the run at once with
    `errors.Stopped`. After it, a signal is remembered for `wanted`. A second one does
    what it did before the context.
    """

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}
        self._deferred = False
        self._received: str | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: set by C code, as jax.distributed does, and lost to Python.
            signal.signal(number, handler or signal.SIG_DFL)
        self._previous = {}

    def defer(self) -> None:
        """From now on the run asks `wanted`, and signals do not interrupt it."""
        self._deferred = True

    @property
    def name(self) -> str:
        """The signal's name, or whose it was."""
        return self._received or "a signal to another process"

    def wanted(self, otherwise: bool = False) -> bool:
        """Whether to stop; the same answer in every process of the job.

        `otherwise` says whether this one has another reason than a signal.
        """
        return hosts.any_process(self._received is not None or otherwise)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number).name
        if not self._deferred:
            raise errors.Stopped(f"{self._received} before the first step")
        # No warning: those are the report's, and this is no fault of the run.
        _log.info("%s: saving after this step", self._received)
        self.__exit__()
