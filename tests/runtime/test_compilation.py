"""Where compiled programs are kept, and where they are not."""

import os

import jax
import numpy as np
import pytest

from ti_flax.runtime import compilation


@pytest.fixture(autouse=True)
def unset():
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def no_home(monkeypatch):
    # As for a container's user without HOME and without an entry in /etc/passwd.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.parametrize("folder", [None, "~/.cache/ti_flax", "file/ti_flax"])
def test_without_a_place_nothing_is_kept_or_made(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    no_home(monkeypatch)
    (tmp_path / "file").touch()
    compilation.keep_compiled(folder)
    assert jax.config.jax_compilation_cache_dir is None
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("folder", ["gs://bucket/programs", "{tmp}/new/programs"])
def test_programs_are_kept_where_they_can_be(tmp_path, folder):
    folder = folder.format(tmp=tmp_path)
    compilation.keep_compiled(folder)
    assert jax.config.jax_compilation_cache_dir == folder


def test_a_folder_given_to_jax_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", "given")
    compilation.keep_compiled(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == "given"


@pytest.mark.parametrize("first", [0, 1, 7, 20, 99])
def test_the_largest_that_fits_is_confirmed_by_the_next(first):
    for most in (1, 6, 20):
        for limit in range(most + 1):
            tried = []

            def fits(number, tried=tried, limit=limit):
                tried.append(number)
                return number <= limit

            assert compilation.largest(fits, first, most) == limit
            assert {limit, min(limit + 1, most)} - {0} <= set(tried)
            assert len(tried) == len(set(tried)) <= 10
            # Who keeps what the last that fitted needs, keeps that of the largest.
            assert limit in [0, *(each for each in tried if each <= limit)][-1:]
            if abs(min(max(first, 1), most) - limit) <= 1:
                assert len(tried) <= 4


def test_the_compilers_figures_and_words_say_what_does_not_fit():
    def peak(size):
        array = jax.ShapeDtypeStruct((size,), np.float32)
        return compilation.peak_bytes(jax.jit(lambda x: x * 2).lower(array).compile())

    # What comes in and what goes out.
    assert peak(2**22) - peak(2**20) == 2 * 4 * (2**22 - 2**20)
    told = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom"
    assert compilation.says_too_large(jax.errors.JaxRuntimeError(told))
    assert not compilation.says_too_large(jax.errors.JaxRuntimeError("INTERNAL"))
