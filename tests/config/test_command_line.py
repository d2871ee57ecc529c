"""Our messages on stderr."""

import io
import logging
import sys

from ti_flax.runtime import log as runtime_log


def test_a_message_is_shown_once_where_stderr_is_now(monkeypatch):
    log = logging.getLogger("ti_flax")
    monkeypatch.setattr(log, "handlers", [*log.handlers])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", log.level)
    for message in ("one", "two"):
        monkeypatch.setattr("sys.stderr", io.StringIO())
        runtime_log.show_log()
        logging.getLogger("ti_flax.module").info(message)
        assert sys.stderr.getvalue() == f"{message}\n"
