"""Runs on an NVIDIA GPU.

With those of tests/models/test_attention.py: `TI_FLAX_TESTS_ON=cuda pytest -m gpu`.
"""

import json

import numpy as np
import pytest

from ti_flax.quickstart import settings
from ti_flax.training import run as training_run

pytestmark = pytest.mark.gpu


@pytest.fixture
def learn(tmp_path):
    """Learns the quickstart's word into a folder of this name; the word."""

    def learn(name, *keys):
        folder = str(tmp_path / name)
        config = settings.load_config(["--output_dir", folder, *keys])
        (learned,) = training_run.train_concepts(config, progress=False)
        return learned.word

    return learn


def test_a_resumed_run_is_the_one_that_was_never_interrupted(learn):
    """To the bit: no sum of a gradient is left to the order of threads."""
    constant = ("--lr_scheduler", "constant", "--checkpointing_steps", "10")
    whole = learn("whole", "--max_train_steps", "20", *constant)
    learn("parts", "--max_train_steps", "10", *constant)
    on = ("--resume_from_checkpoint", "latest", "--overwrite_output_dir", "false")
    parts = learn("parts", "--max_train_steps", "20", *on, *constant)
    np.testing.assert_equal(whole.rows, parts.rows)


def test_the_quickstart_learns_what_it_learns_on_a_cpu(learn, tmp_path):
    """The fixed loss from 0.2258 to 0.1869, as docs/learning.md has it."""
    learn("quickstart", "--mixed_precision", "no")
    lines = (tmp_path / "quickstart" / "validation.jsonl").read_text().splitlines()
    losses = [json.loads(line)["fixed_loss"] for line in lines]
    np.testing.assert_allclose([losses[0], losses[-1]], [0.2258, 0.1869], atol=1e-3)
