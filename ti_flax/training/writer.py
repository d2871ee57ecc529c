"""What a run writes beside its report; silent on every host but the first."""

import contextlib
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, NamedTuple

import jax

from ti_flax.checkpoints import identity, store
from ti_flax.checkpoints.output_dir import RunFolder
from ti_flax.config import run_config
from ti_flax.publishing import provenance, results, words
from ti_flax.runtime import atomic, hosts
from ti_flax.step import stopping
from ti_flax.step.state import State
from ti_flax.text.embedding import Embedding
from ti_flax.training.inputs import Inputs, Start


class Writer:
    """The output folder, the checkpoints and the learned word; a context manager.

    Attributes:
        writes: whether this is the host that writes.
        found: the checkpoint to resume from, on that host.
    """

    def __init__(self, config: run_config.Config) -> None:
        self.writes = jax.process_index() == 0
        self.found: identity.FoundCheckpoint | None = None
        self._config = config
        self._stack = contextlib.ExitStack()
        self._fingerprints: Mapping[str, str] = {}
        self._start = 0
        self._chosen: Start | None = None

    def __enter__(self) -> "Writer":
        """Checks what can be checked before anything is read, and writes nothing."""
        if self.writes:
            results.check(self._config)
            self._folder = self._stack.enter_context(RunFolder(self._config))
            self.found = self._folder.found
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self, inputs: Inputs) -> None:
        """Raises `UserError` when the checkpoint is of other inputs."""
        self._inputs = inputs
        if self.writes:
            self._fingerprints = inputs.fingerprints()
            if self.found is not None:
                identity.check_fingerprints(self.found, self._fingerprints)

    def start(self) -> Start | None:
        """What the run to resume began with, where several starts were tried."""
        told = None if self.found is None else self.found.run.get("start")
        told = json.loads(hosts.text_from_first(json.dumps(told)))
        return None if told is None else Start(**told)

    def begin_with(self, start: Start) -> None:
        """Notes the start that was chosen, for checkpoints and provenance."""
        self._chosen = start

    def restore(self, initial: State) -> tuple[range, State]:
        """The steps that are left, and the state before them, in host memory.

        `initial` is the state where there is no checkpoint to resume from.
        """
        start, state = store.restore(self.found, initial)
        self._start = start
        stop = start if has_learned(state) else self._config.max_train_steps
        return range(start, max(start, stop)), state

    def open(self) -> None:
        """Makes the folder; from now on this may write."""
        self._stack.enter_context(
            atomic.one_line_errors(
                "output_dir",
                "what was saved before is whole; make room, then run again with "
                "resume_from_checkpoint latest",
            )
        )
        if self.writes:
            self._folder.create()
            folder, token = self._config.output_dir, self._config.placeholder_token
            words.remove_after(folder, token, self._start)
            self._checkpoints = self._stack.enter_context(
                store.Checkpoints(
                    store.folder_of(self._config),
                    self._config.checkpoints_total_limit,
                    identity.describe(
                        self._config,
                        self._fingerprints,
                        self._chosen and self._chosen._asdict(),
                    ),
                )
            )

    def save(self, done: int, state: State) -> None:
        """A checkpoint after `done` steps, and the word as it is then."""
        if self.writes:
            self._checkpoints.save(done, state)
        self.export(state)

    def look(self, done: int, state: State) -> None:
        """The word as it is after `done` steps, for whoever looks at it then."""
        if self.writes:
            word = self._told(*_kept(self._config, state, "last"))
            limit = self._config.words_total_limit
            words.write(self._config.output_dir, word, done, limit)

    def export(self, state: State) -> None:
        """What was learned so far, for other programs."""
        if self.writes:
            word = self._told(*learned(self._config, state))
            results.write(self._config, word, self._inputs.pictures.images)

    def _told(self, word: Embedding, step: int) -> Embedding:
        """The word with its provenance, as it was after `step` steps."""
        model, config = self._inputs.model, self._config
        about = provenance.of_run(
            config, model.scheduler, self._fingerprints, step, word.rows
        )
        if self._chosen is not None:
            about["start"] = str(self._chosen)
        return word._replace(provenance=about)

    def finish(self, word: Embedding) -> None:
        """The whole pipeline and the upload, as asked."""
        if self.writes:
            model, tokenizers = self._inputs.model, self._inputs.tokenizers
            results.finish(self._config, model, tokenizers, word)


class Learned(NamedTuple):
    """A word, and after how many steps its rows were as they are kept."""

    word: Embedding
    step: int


def learned(config: run_config.Config, state: State) -> Learned:
    """The word of slot 0, as `keep` says."""
    return _kept(config, state, config.keep)


def _kept(
    config: run_config.Config, state: State, keep: Literal["last", "best"]
) -> Learned:
    rows, step = stopping.kept(state, keep)
    own = {name: each[0] for name, each in rows.items()}
    return Learned(Embedding(config.placeholder_token, own), int(step[0]))


def has_learned(state: State) -> bool:
    """Whether the word was stopped before its last step, because it has learned."""
    return state.progress is not None and bool(state.progress.stopped[0])
