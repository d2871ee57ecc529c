"""What only an NVIDIA GPU can show; elsewhere all of it is skipped.

`TI_FLAX_TESTS_ON=cuda python -m pytest -m gpu tests/test_on_gpu.py`
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from ti_flax.models import attention
from ti_flax.quickstart import settings
from ti_flax.runtime import sharding
from ti_flax.training.job import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("jax.default_backend() != 'gpu'", reason="there is no GPU"),
]

# Of Stable Diffusion 1.x at 512 px, of SDXL, and a length that no block divides.
SHAPES = [
    (4096, 4096, 40),
    (4096, 77, 40),
    (1024, 1024, 80),
    (256, 77, 160),
    (64, 64, 160),
    (247, 247, 160),
    (1024, 1024, 64),
    (988, 988, 64),
]


@pytest.mark.parametrize(("length", "keys", "head_dim"), SHAPES)
def test_cudnn_is_the_formula(length, keys, head_dim):
    """As near, by norm, as bfloat16 comes to float32, forward and backward."""
    plan = attention.make_plan("auto", sharding.make_mesh())
    random = np.random.default_rng(0)
    q, k, v, d_out = (
        jnp.asarray(random.normal(size=(2, n, 4, head_dim)), jnp.bfloat16)
        for n in (length, keys, keys, length)
    )
    assert attention.choose(q, k, plan) == "cudnn"
    found = with_gradients(functools.partial(attention.attend, plan=plan), q, k, v)
    exact = [each.astype(jnp.float32) for each in (q, k, v)]
    with jax.default_matmul_precision("highest"):
        expected = with_gradients(attention.plain, *exact)
    for ours, theirs in zip(found(d_out), expected(d_out), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs)


def with_gradients(function, *arrays):
    """A function of the gradient that comes back: output, and gradients of all."""

    def both(d_out):
        out, pull_back = jax.vjp(jax.jit(function), *arrays)
        return [
            np.asarray(x, np.float32)
            for x in (out, *pull_back(d_out.astype(out.dtype)))
        ]

    return both


@pytest.fixture
def learn(tmp_path):
    """Learns the quickstart's word; the folder."""

    def learn(name, *keys):
        folder = tmp_path / name
        config = settings.load_config(["--output_dir", str(folder), *keys])
        train(config)
        return folder

    return learn


def rows(folder):
    with safetensors.safe_open(folder / "learned_embeds.safetensors", "numpy") as file:
        return file.get_tensor("<bumbee>")


def test_a_resumed_run_is_the_one_that_was_never_interrupted(learn):
    """To the bit: no sum of a gradient is left to the order of threads."""
    constant = ("--lr_scheduler", "constant", "--checkpointing_steps", "10")
    whole = learn("whole", "--max_train_steps", "20", *constant)
    learn("parts", "--max_train_steps", "10", *constant)
    on = ("--resume_from_checkpoint", "latest", "--overwrite_output_dir", "false")
    parts = learn("parts", "--max_train_steps", "20", *on, *constant)
    np.testing.assert_array_equal(rows(whole), rows(parts))


def test_the_quickstart_learns_what_it_learns_on_a_cpu(learn):
    """The fixed loss from 0.2258 to 0.1869, as docs/learning.md has it."""
    folder = learn("quickstart", "--mixed_precision", "no")
    lines = (folder / "validation.jsonl").read_text().splitlines()
    losses = [json.loads(line)["fixed_loss"] for line in lines]
    np.testing.assert_allclose([losses[0], losses[-1]], [0.2258, 0.1869], atol=1e-3)
