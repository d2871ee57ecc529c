"""Where each of many concepts stands: concepts.json, which a later run reads.

Processes that share a list have a file each, as concepts-0-of-4.json, and any of them
writes the page over all.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ti_flax.checkpoints.identity import fingerprint
from ti_flax.config.concepts import Concept, Many
from ti_flax.reports import metrics_log
from ti_flax.reports.index_page import Entry, IndexPage
from ti_flax.runtime import atomic

NAME = "concepts{}.json"  # with `Part.suffix`
# Seconds between index pages.
_PAGE_SECONDS = 10.0
# How often the page is written again because other processes have gone on meanwhile.
_MOST_PAGES = 10


class Ledger:
    """States of concepts by name, and the index page over them.

    What is counted are the concepts of this process; the page has those of all.
    """

    def __init__(self, many: Many) -> None:
        """Takes over what earlier runs with the same settings wrote."""
        self._folder = many.output_dir
        self._path = many.output_dir / NAME.format(many.part.suffix)
        self._page = IndexPage(many.output_dir)
        self._identities = {
            concept.name: fingerprint(concept.config.model_dump_json().encode())
            for concept in many.concepts
        }
        bad_here = many.part.own(many.bad)
        self._own = {concept.name for concept in many.own} | {n for n, _ in bad_here}
        self._entries = {
            concept.name: Entry(
                **_NEW,
                name=concept.name,
                word=concept.config.placeholder_token,
                max_steps=concept.config.max_train_steps,
                settings=concept.settings,
            )
            for concept in many.concepts
        }
        for name, reason in many.bad:
            told = _NEW | {"state": "failed", "reason": reason}
            self._entries[name] = Entry(
                **told, name=name, word="", max_steps=0, settings={}
            )
        # In how many slots a concept's group is trained.
        self._slots: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._opened, self._done_here = time.monotonic(), 0
        self._written = -_PAGE_SECONDS
        # Of other files: when they were written, and words an hour while they train.
        self._seen: dict[Path, int] = {}
        self._speeds: dict[Path, float] = {}
        for path in sorted(self._files(), key=_written):
            self._read(path, begins=True)

    def is_done(self, concept: Concept) -> bool:
        return self._entries[concept.name].state == "done"

    def counts(self) -> Counter[str]:
        """How many concepts are in each state."""
        return Counter(self._entries[name].state for name in self._own)

    def failed(self) -> list[tuple[str, str]]:
        """Name and reason of each that failed."""
        return [
            (entry.name, entry.reason)
            for name, entry in self._entries.items()
            if name in self._own and entry.state == "failed"
        ]

    def words_per_hour(self) -> float | None:
        """Of this run so far."""
        if not self._done_here:
            return None
        return self._done_here * 3600 / (time.monotonic() - self._opened)

    def slots_for(self, group: Sequence[Concept], most: int) -> int:
        """How many slots a group gets: as many as when it was begun.

        What is left of it would do with fewer, which round otherwise.
        """
        begun = [self._slots.get(concept.name, 0) for concept in group]
        count = min(most, max(len(group), *begun))
        self._slots |= dict.fromkeys((concept.name for concept in group), count)
        return count

    def begin(self, concept: Concept, steps: int) -> None:
        self._began[concept.name] = time.monotonic()
        self._set(concept, state="training", steps=steps, reason="")

    def done(self, concept: Concept, steps: int, reason: str) -> None:
        self._done_here += 1
        self._end(concept, state="done", steps=steps, reason=reason)

    def fail(self, concept: Concept, reason: str) -> None:
        self._end(concept, state="failed", reason=reason)

    def wait(self, concept: Concept, steps: int) -> None:
        """It was stopped, with all it needs to go on."""
        self._end(concept, state="waiting", steps=steps)

    def close(self) -> None:
        """Writes the page as it is in the end.

        Where another process wrote while this one did, it may have the older page.
        """
        self._read_others()
        for _ in range(_MOST_PAGES):
            speeds = [self.words_per_hour() or 0.0, *self._speeds.values()]
            self._page.write([*self._entries.values()], sum(speeds) or None)
            if not self._read_others():
                return

    def _end(self, concept: Concept, **changes: Any) -> None:
        began = self._began.pop(concept.name, None)
        if began is not None:
            before = self._entries[concept.name].seconds
            changes["seconds"] = before + time.monotonic() - began
        path = concept.config.output_dir / metrics_log.VALIDATION_NAME
        losses = [line.get("fixed_loss") for line in metrics_log.read_lines(path)]
        if losses:
            changes |= {"first_fixed_loss": losses[0], "fixed_loss": losses[-1]}
        self._set(concept, **changes)

    def _set(self, concept: Concept, **changes: Any) -> None:
        entry = self._entries[concept.name]
        self._entries[concept.name] = entry._replace(**changes)
        lines = {
            name: {
                "config": self._identities.get(name, ""),
                "slots": self._slots.get(name, 0),
                **{key: getattr(entry, key) for key in _KEPT},
            }
            for name, entry in self._entries.items()
            if name in self._own
        }
        speed = self.words_per_hour() if self.counts()["training"] else None
        atomic.write_json(self._path, {"words_per_hour": speed, "concepts": lines})
        if time.monotonic() - self._written >= _PAGE_SECONDS:
            self.close()
            self._written = time.monotonic()

    def _files(self) -> list[Path]:
        return [*self._folder.glob(NAME.format("*"))]

    def _read_others(self) -> bool:
        """Takes over what other processes wrote since; whether there was anything."""
        changed = False
        for path in self._files():
            if path != self._path and self._seen.get(path) != _written(path):
                self._read(path, begins=False)
                changed = True
        return changed

    def _read(self, path: Path, begins: bool) -> None:
        """Takes over what another run with the same settings wrote.

        Of this process's own concepts, when it `begins`.
        """
        self._seen[path] = _written(path)
        speed, saved = read(path)
        self._speeds[path] = speed
        for name, identity in self._identities.items():
            line, entry = saved.get(name), self._entries[name]
            if line is None or line["config"] != identity or entry.state == "done":
                continue
            known = {key: line[key] for key in _KEPT}
            if name in self._own:
                if not begins:
                    continue
                self._slots[name] = line["slots"]
                if known["state"] != "done":  # it was killed, or may do better now
                    known |= {"state": "waiting", "reason": ""}
            self._entries[name] = entry._replace(**known)


def _written(path: Path) -> int:
    """When a file was, in nanoseconds; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def read(path: Path) -> tuple[float, dict[str, dict[str, Any]]]:
    """Words an hour and the lines of a file by name; nothing of what is none."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        speed, lines = saved["words_per_hour"], saved["concepts"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0.0, {}
    if type(speed) not in (int, float) or not 0 < speed < math.inf:
        speed = 0.0
    return float(speed), {name: line for name, line in lines if _is_sound(line)}


_NEW: dict[str, Any] = {
    "state": "waiting",
    "steps": 0,
    "seconds": 0.0,
    "fixed_loss": None,
    "first_fixed_loss": None,
    "reason": "",
}
# What is kept of an entry, and the types it may have.
_KEPT: dict[str, tuple[type, ...]] = {
    "state": (str,),
    "steps": (int,),
    "seconds": (int, float),
    "fixed_loss": (int, float, type(None)),
    "first_fixed_loss": (int, float, type(None)),
    "reason": (str,),
}


def _is_sound(line: Any) -> bool:
    kept = _KEPT | {"config": (str,), "slots": (int,)}
    return isinstance(line, dict) and all(
        key in line and type(line[key]) in kept[key] for key in kept
    )
