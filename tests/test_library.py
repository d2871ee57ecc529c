"""docs/library.md and examples/: what stands there runs, and does what it says."""

import json
import re
import runpy
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.diffusion import objective
from ti_flax.diffusion.process import Ddpm
from ti_flax.formats.find import load_embedding
from ti_flax.training.objective import make_objective

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
STEPS = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples run."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def example(folder, monkeypatch, capsys):
    """Runs an example; what it prints."""

    def run(name, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_word_is_learned_and_used(example, folder):
    printed = example("learn_a_word", str(STEPS))
    learned = folder / "output" / "learn_a_word"
    for look in lines_of(learned / "validation.jsonl"):
        assert f"step {look['step']}: fixed loss {look['fixed_loss']:.4f}" in printed
    assert f"<bumbee>: (1, 128) in {Path('output/learn_a_word')}" in printed
    losses = [line["loss"] for line in lines_of(learned / "metrics.jsonl")]
    assert len(losses) == STEPS
    assert f"last ten steps: {np.mean(losses):.4f}" in printed
    printed = example("use_a_word")
    assert "token: <bumbee>" in printed and "4 pictures of (64, 64)" in printed
    assert len([*(folder / "output" / "use_a_word").glob("0*.png")]) == 4
    rows = [load_embedding(f).rows["text_encoder"] for f in (learned, folder / PT)]
    np.testing.assert_array_equal(*rows)


PT = "output/bumbee.pt"


def test_learning_rates_are_compared(example, folder):
    printed = example("compare_rates", str(STEPS), "0.001", "0.01").splitlines()[1:]
    assert len(printed) == 2
    starts, ends = set(), set()
    for line in printed:
        rate, first, last, distance = line.split()
        run = folder / "output" / "compare_rates" / f"{float(rate):g}"
        looks = lines_of(run / "validation.jsonl")
        starts.add(looks[0]["fixed_loss"])
        ends.add(looks[-1]["fixed_loss"])
        assert [first, last] == [f"{looks[i]['fixed_loss']:.4f}" for i in (0, -1)]
        assert distance == f"{looks[-1]['distance'][0]:.3f}"
    # The same set, and other rates.
    assert len(starts) == 1 and len(ends) == 2


def test_the_page_names_each_example():
    named = set(re.findall(r"\(\.\./examples/(\w+)\.py\)", PAGE))
    assert named == {path.stem for path in EXAMPLES.iterdir() if path.suffix == ".py"}


def test_a_loss_is_added_as_the_page_says(monkeypatch):
    (code,) = re.findall(r"```python\n( *def log_cosh.*?)```", PAGE, re.DOTALL)
    there = {"jnp": jnp, "mean_of_each": objective.mean_of_each}
    exec(textwrap.dedent(code), there)
    monkeypatch.setitem(objective.LOSSES, "log_cosh", there["log_cosh"])
    keys = ObjectiveKeys(snr_gamma=5).model_copy(update={"loss_type": "log_cosh"})
    process = Ddpm(jnp.linspace(0.99, 0.01, 40), "epsilon")
    made = make_objective(keys, process, 4)
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 3, 4, 4, 2), scale=3)
    mask, times = random.uniform(size=(3, 4, 4)), np.array([0, 17, 39])
    ours = made.losses(*map(jnp.asarray, (prediction, target, times, mask)))
    each = np.log(np.cosh(prediction - target)) * mask[..., None]
    snr = np.asarray(process.alphas_cumprod, np.float64)[times]
    snr = snr / (1 - snr)
    expected = each.mean(axis=(1, 2, 3)) * np.minimum(snr, 5) / snr
    np.testing.assert_allclose(ours, expected, rtol=2e-6)  # float32
