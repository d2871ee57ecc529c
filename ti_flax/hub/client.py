"""huggingface_hub's client, kept from the console: our own lines say what it does."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def is_silent() -> Iterator[None]:
    """Leaves out huggingface_hub's bars and warnings, as of each repeated request.

    HF_DEBUG shows the warnings.
    """
    from huggingface_hub import utils

    client = logging.getLogger("huggingface_hub")
    level, had_bars = client.level, not utils.are_progress_bars_disabled()
    if level != logging.DEBUG:
        client.setLevel(logging.ERROR)
    if had_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        client.setLevel(level)
        if had_bars:
            utils.enable_progress_bars()
