"""What is told of a program that is being compiled, and how long that takes."""

import json
import logging

import jax
import jax.numpy as jnp
import pytest

from ti_flax.runtime import compile_time

NAME = "ti_flax_compile_seconds.json"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path, monkeypatch):
    old = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", old)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(compile_time.time, "perf_counter", clock)
    return clock


def told(caplog, name="train step"):
    caplog.clear()
    with caplog.at_level(logging.INFO, "ti_flax"):
        compile_time.tell(name)
    return caplog.messages[-1]


def compile_for(clock, seconds, name="train step"):
    with compile_time.noted(name):
        clock.now += seconds


@pytest.mark.parametrize(("seconds", "shown"), [(43.2, "43 s"), (754.0, "13 min")])
def test_the_last_time_is_told(folder, clock, caplog, seconds, shown):
    assert told(caplog) == "compiling the train step"
    compile_for(clock, 999.0)
    compile_for(clock, seconds)
    compile_for(clock, 500.0, "another")
    expected = f"compiling the train step; the last time it took {shown}"
    assert told(caplog) == expected


def test_what_is_found_compiled_or_takes_no_time_tells_nothing(folder, clock, caplog):
    compile_for(clock, 50.0)
    compile_for(clock, 1.0)
    with compile_time.noted("train step"):
        compile_time._heard("/jax/compilation_cache/cache_hits")
        clock.now += 5.0
    assert "50 s" in told(caplog)


def test_jax_tells_of_a_program_that_it_finds(folder):
    """The event's name is JAX's own, in the oldest version and in the newest."""
    heard = []
    jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
    name = "jax_persistent_cache_min_compile_time_secs"
    old = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    for _ in range(2):  # each a function of its own to jit
        jax.jit(lambda x: jnp.sin(x) @ x + 41.5).lower(jnp.ones((8, 8))).compile()
    jax.config.update(name, old)
    assert "/jax/compilation_cache/cache_hits" in heard


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '{"train step": "long"}', "{" * 9, "x" * 2**17]
)
def test_another_file_there_is_passed_over(folder, clock, caplog, content):
    (folder / NAME).write_text(content)
    assert told(caplog) == "compiling the train step"
    compile_for(clock, 30.0)
    assert [*json.loads((folder / NAME).read_text()).values()] == [30.0]


@pytest.mark.parametrize("place", [None, "gs://bucket/cache"])
def test_without_a_folder_nothing_is_kept(place, clock, caplog):
    old = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", place)
    try:
        compile_for(clock, 30.0)
        assert told(caplog) == "compiling the train step"
    finally:
        jax.config.update("jax_compilation_cache_dir", old)
