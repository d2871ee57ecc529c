"""What a process does when another fails, is killed, or does not answer."""

import threading
from typing import NamedTuple

import jax
import pytest

from ti_flax.runtime import errors, peers

SILENT, LOOK = 0.6, 0.02
HOST = "a-host"


class Store:
    """JAX's key-value store, of which a test plays the other processes."""

    def __init__(self):
        self.texts = {}
        self.answers = True
        self.over = threading.Event()

    def key_value_set(self, key, text, allow_overwrite=False):
        self._answer()
        assert allow_overwrite or key not in self.texts
        self.texts[key] = text

    def key_value_dir_get(self, folder):
        self._answer()
        return [item for item in list(self.texts.items()) if item[0].startswith(folder)]

    def _answer(self):
        if self.answers == "late":
            self.over.wait()
        if not self.answers:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")


class Ended(BaseException):
    """In place of the end of the process."""


class Job(NamedTuple):
    watch: peers.Watch
    store: Store
    ends: list  # (code, message) of the process's end
    ended: threading.Event


@pytest.fixture
def start(monkeypatch):
    """Starts the watch of process `index` of three; `living` say that they live."""
    store, ends, ended, watches = Store(), [], threading.Event(), []

    def exit_now(message, code):
        ends.append((code, message))
        ended.set()
        raise Ended

    monkeypatch.setattr(peers, "exit_now", exit_now)
    monkeypatch.setattr(peers, "SILENT_SECONDS", SILENT)
    monkeypatch.setattr(peers, "_LOOK_SECONDS", LOOK)
    monkeypatch.setattr(peers, "_speaking", threading.Lock())
    monkeypatch.setattr(peers.jax_distributed.global_state, "client", store)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # of `Ended`

    def start(index, *living):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        watch = peers.Watch()
        watch.start()
        watches.append(watch)

        def beat():
            count = 0
            while not store.over.wait(LOOK):
                count += 1
                for process in living:
                    store.texts[f"{peers._ALIVE}/{process}"] = f"{count} {HOST}"

        threading.Thread(target=beat, daemon=True).start()
        return Job(watch, store, ends, ended)

    yield start
    store.over.set()
    for watch in watches:
        watch.end()
        watch.join()


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_are_heard_of_end_nothing(start, index):
    job = start(index, *({0, 1, 2} - {index}))
    assert not job.ended.wait(3 * SILENT)
    job.watch.end()
    job.watch.join()
    assert job.ends == []


@pytest.mark.parametrize("last_words", [f"7 {HOST}", ""])
@pytest.mark.parametrize("lost", [1, 2])
def test_process_0_ends_all_when_another_is_lost(start, lost, last_words):
    job = start(0, 3 - lost)
    if last_words:
        job.store.texts[f"{peers._ALIVE}/{lost}"] = last_words
    assert job.ended.wait(20 * SILENT)
    [(code, message)] = job.ends
    assert code == 1 and "\n" not in message
    host = HOST if last_words else "it has said nothing yet"
    assert message.startswith(f"process {lost} ({host}) has not been heard of for")
    assert "resume_from_checkpoint latest" in message
    # The others hear it, and that it was process 0 that noticed.
    told = job.store.texts[f"{peers._FAILED}/0"]
    assert told.startswith("1 process 0 (") and told.endswith(message)


def test_others_leave_that_to_process_0(start):
    job = start(1, 0)
    assert not job.ended.wait(3 * SILENT)


def test_the_line_of_the_one_that_failed_ends_all(start):
    job = start(2, 0, 1)
    job.store.texts[f"{peers._FAILED}/1"] = "2 process 1 (a-host): no such folder"
    assert job.ended.wait(20 * SILENT)
    assert job.ends == [(2, "process 1 (a-host): no such folder")]


@pytest.mark.parametrize("answers", [False, "late"])
def test_a_process_ends_when_process_0_does_not_answer(start, answers):
    job = start(1, 0, 2)
    job.store.answers = answers
    assert job.ended.wait(20 * SILENT)
    [(code, message)] = job.ends
    assert code == 1
    assert message.startswith("process 0 (the coordinator) has not been heard of for")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UserError("give a folder"), 2, "give a folder"),
        (errors.Stopped("saved"), 75, "saved"),
        (SystemExit(3), 3, "3"),
        (ValueError("a\nb"), 1, "ValueError: a b"),
    ],
)
def test_an_error_ends_all_with_its_code(start, capsys, error, code, message):
    job = start(1, 0, 2)
    job.watch.end()
    with pytest.raises(Ended):
        peers.stop_all(error)
    assert job.ends == [(code, message)]
    assert job.store.texts[f"{peers._FAILED}/1"].endswith(f": {message}")
    # What is a fault is told in full.
    assert ("ValueError: a\nb" in capsys.readouterr().err) == (code == 1)


def test_jax_is_given_longer_than_we_wait():
    assert peers.JAX_SILENT_SECONDS >= 5 * peers.SILENT_SECONDS
