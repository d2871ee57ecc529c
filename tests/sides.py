"""The sides of a benchmark without processes of their own."""

import importlib
import json
from pathlib import Path

from ti_flax.benchmarks.keys import MeasuringKeys


class Inside:
    """In place of `turns.Worker`: a side in this process, which tells no memory."""

    def __init__(
        self, name: str, python: Path, module: str, keys: MeasuringKeys
    ) -> None:
        facts, self._take_turn = importlib.import_module(module).prepare(keys)
        # Through JSON, as between processes.
        self._facts = json.loads(json.dumps(facts))

    def hear(self) -> dict[str, object]:
        return self._facts

    def ask(self, go_on: bool) -> object:
        return json.loads(json.dumps(self._take_turn())) if go_on else 1

    def end(self) -> None:
        """There is no process to end."""
