"""Repositories of the Hub, downloaded: a line says how much comes, a bar how far it is.

A function here raises whatever huggingface_hub's client and its HTTP library do.
"""

import fnmatch
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ti_flax.hub import client
from ti_flax.runtime.progress import Bar

_log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What a repository has at a commit: the bytes of each file, where they are known.

    Of a Hub that was not reached, nothing.
    """

    commit: str | None = None
    sizes: Mapping[str, int | None] = {}


def list_files(repository: str, revision: str | None) -> Listing:
    """The files of a repository, without fetching one."""
    # Slow to import, and not needed for a local folder.
    import huggingface_hub

    with client.is_silent():
        info = huggingface_hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True
        )
    sizes = {
        str(file.rfilename): size if type(size := file.size) is int else None
        for file in info.siblings or ()
    }
    return Listing(str(info.sha), sizes)


def download(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    listing: Listing = Listing(),  # noqa: B008, a tuple
) -> Path:
    """The local copy of the files that match; what the cache holds is not fetched.

    Without a network the cache alone serves. Of what `listing` has and the cache has
    not, the log says how much it is.
    """
    import huggingface_hub

    sizes = _missing(repository, patterns, listing)
    total = sum(size or 0 for size in sizes)
    if sizes:
        counted = f"{len(sizes)} file{'s' * (len(sizes) > 1)}"
        _log.info("downloading %s: %s, %s", repository, counted, _amount(total))
    bar = Bar(
        total=total,
        unit="B",
        unit_scale=True,
        desc="downloading",
        dynamic_ncols=True,
        # Of a library that nobody asked to say anything, there is no log.
        disable=not sizes or not _log.isEnabledFor(logging.INFO),
    )
    with bar, client.is_silent():
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            tqdm_class=_bars_that_move(bar),
        )
        bar.update(total - bar.n)
    return Path(folder)


def _missing(
    repository: str, patterns: Sequence[str], listing: Listing
) -> list[int | None]:
    """The sizes of the files that match and that the cache has not."""
    import huggingface_hub

    return [
        size
        for name, size in listing.sizes.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        and not isinstance(
            huggingface_hub.try_to_load_from_cache(
                repository, name, revision=listing.commit
            ),
            str,
        )
    ]


def _amount(size: int) -> str:
    """As "4.27 GB" or "831 kB"."""
    for unit, bytes_of_it in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_of_it:
            return f"{size / bytes_of_it:.3g} {unit}"
    return f"{-(-size // 1000)} kB"


def _bars_that_move(bar: Bar) -> type[tqdm]:
    """The client's bars, which show nothing; the one of most bytes moves ours.

    The client counts bytes of the network and of files apart, and files in threads.
    """
    lock = threading.Lock()

    class Silent(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)  # of the client's own bars
            super().__init__(*args, **settings | {"disable": True})
            self._done, self._counts = 0.0, settings.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            with lock:
                self._done += n or 0
                if self._counts and self._done > bar.n:
                    bar.update(self._done - bar.n)

    return Silent
