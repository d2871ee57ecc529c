"""The trainer asks for nothing that only Unix has."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import runs

from ti_flax.runtime import chips

TESTS = Path(__file__).parents[1]

# What Python on Windows does not have fails to import, as it does there.
_WITHOUT_UNIX = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios")))
sys.path.append({str(TESTS)!r})
import fake_model
from ti_flax.models import base_model
base_model.open_model = fake_model.open_fake
runpy.run_module("ti_flax.train", run_name="__main__", alter_sys=True)
"""


def test_a_run_needs_no_module_that_only_unix_has(tiny_model, tmp_path):
    """Its networks are fakes: the modules of all are imported."""
    pictures = runs.draw_pictures(tmp_path / "pictures")
    keys = runs.keys(tiny_model, pictures, tmp_path / "run", max_train_steps=2)
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT_UNIX, *runs.to_argv(keys)],
        # Its lock of the shared cache would wait for the others', which are of another
        # kind.
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run" / "learned_embeds.safetensors").is_file()
    assert runs.checkpoints(tmp_path / "run") == [2]


def test_memory_that_the_system_does_not_tell_is_taken_for_enough(monkeypatch):
    assert 0 < chips.device_memory(jax.devices("cpu")[0]) < math.inf
    monkeypatch.delattr(os, "sysconf")
    assert chips.device_memory(jax.devices("cpu")[0]) == math.inf
