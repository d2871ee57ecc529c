"""Where compiled programs are kept, and where they are not."""

import os

import jax
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
