"""Where each of many concepts stands: concepts.json, which a later run reads."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ti_flax.checkpoints.identity import fingerprint
from ti_flax.config.concepts import Concept
from ti_flax.reports import metrics_log
from ti_flax.reports.index_page import Entry, IndexPage
from ti_flax.runtime import atomic

NAME = "concepts.json"
# Seconds between index pages.
_PAGE_SECONDS = 10.0


class Ledger:
    """States of concepts by name, and the index page over them."""

    def __init__(
        self,
        output_dir: Path,
        concepts: Sequence[Concept],
        bad: Sequence[tuple[str, str]],
    ) -> None:
        """`bad` are name and reason of those that cannot be trained."""
        self._path = output_dir / NAME
        self._page = IndexPage(output_dir)
        self._identities = {
            concept.name: fingerprint(concept.config.model_dump_json().encode())
            for concept in concepts
        }
        self._entries = {
            concept.name: Entry(
                **_NEW,
                name=concept.name,
                word=concept.config.placeholder_token,
                max_steps=concept.config.max_train_steps,
                settings=concept.settings,
            )
            for concept in concepts
        }
        for name, reason in bad:
            told = _NEW | {"state": "failed", "reason": reason}
            self._entries[name] = Entry(
                **told, name=name, word="", max_steps=0, settings={}
            )
        # In how many slots a concept's group is trained.
        self._slots: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._opened, self._done_here = time.monotonic(), 0
        self._written = -_PAGE_SECONDS
        self._read()

    def is_done(self, concept: Concept) -> bool:
        return self._entries[concept.name].state == "done"

    def counts(self) -> Counter[str]:
        """How many concepts are in each state."""
        return Counter(entry.state for entry in self._entries.values())

    def failed(self) -> list[tuple[str, str]]:
        """Name and reason of each that failed."""
        return [
            (entry.name, entry.reason)
            for entry in self._entries.values()
            if entry.state == "failed"
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
        """Writes the page as it is in the end."""
        self._page.write([*self._entries.values()], self.words_per_hour())

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
                "config": self._identities[name],
                "slots": self._slots.get(name, 0),
                **{key: getattr(entry, key) for key in _KEPT},
            }
            for name, entry in self._entries.items()
            if name in self._identities
            and (name in self._slots or entry.state != "waiting")
        }
        atomic.write_json(self._path, lines)
        if time.monotonic() - self._written >= _PAGE_SECONDS:
            self.close()
            self._written = time.monotonic()

    def _read(self) -> None:
        """Takes over what an earlier run with the same settings wrote."""
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        for name, identity in self._identities.items():
            line = saved.get(name) if isinstance(saved, dict) else None
            if not isinstance(line, dict) or not _is_sound(line):
                continue
            if line["config"] != identity:
                continue
            self._slots[name] = line["slots"]
            known = {key: line[key] for key in _KEPT}
            if known["state"] != "done":  # it was killed, or may do better now
                known |= {"state": "waiting", "reason": ""}
            self._entries[name] = self._entries[name]._replace(**known)


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


def _is_sound(line: dict[str, Any]) -> bool:
    kept = _KEPT | {"config": (str,), "slots": (int,)}
    return all(key in line and type(line[key]) in kept[key] for key in kept)
