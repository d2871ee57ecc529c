"""The kernels that the benchmark times are those of the UNet, all of them."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from ti_flax import benchmark
from ti_flax.aot import flops
from ti_flax.benchmarks import kernels_jax, random_run, turns
from ti_flax.models import attention, base_model, known
from ti_flax.quickstart import settings

PLAIN = attention.Plan("plain")


def test_kernels_of_stable_diffusion():
    """Counts read off diffusers' configuration of SD 1.5."""
    unet = random_run.make_model(
        known.SHAPES["sd15"], jnp.float32, PLAIN
    ).family.denoiser.module
    found = kernels_jax.find(unet, 2, 64)
    # Two transformers in the first block down, three in the last one up.
    kernel = found["attention, 4096 to 77, 8 heads of 40"]
    assert kernel.calls == found["attention, 4096 to 4096, 8 heads of 40"].calls == 5
    assert kernel.shapes == ((2, 4096, 320), (2, 77, 320), (2, 77, 320))
    assert found["convolution 3 x 3 of stride 2, 64 x 64, 320 to 320"].calls == 1
    # Both of two residual blocks down, the second one of three up.
    assert found["convolution 3 x 3, 64 x 64, 320 to 320"].calls == 7
    # The timestep's own, and one in each of the 12 widest residual blocks.
    assert found["product, 1, 1280 to 1280"].calls == 13
    # Two in each of 22 residual blocks, four in each of 16 transformers, the last.
    assert sum(each.calls for each in found.values() if each.kind == "norms") == 109


class Inside:
    """In place of `turns.Worker`: a side in this process, which tells no memory."""

    def __init__(self, name, python, module, keys):
        facts, self.take_turn = importlib.import_module(module).prepare(keys)
        # Through JSON, as between processes.
        self.facts = json.loads(json.dumps(facts))

    def hear(self):
        return self.facts

    def ask(self, go_on):
        return self.take_turn() if go_on else 1

    def end(self):
        """There is no process to end."""


# With PyTorch all is measured that is measured without.
@pytest.mark.parametrize(
    "pytorch", ["same", pytest.param("no", marks=pytest.mark.slow)]
)
def test_the_table_adds_up_to_the_network(
    pytorch, small_model, tmp_path, monkeypatch, capsys
):
    if pytorch == "same":
        pytest.importorskip("torch")
        # Processes of both sides are shown by test_step.py.
        monkeypatch.setattr(turns, "Worker", Inside)
        monkeypatch.setattr(kernels_jax, "_LEAST_SECONDS", 1e-9)
        monkeypatch.setattr(settings, "MODEL", small_model)
    output = tmp_path / "kernels.json"
    argv = ["--model", "quickstart", "--repeats", "1", f"--output={output}"]
    argv += ["--pytorch", pytorch, "--train_batch_size", "8"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "kernels", *argv])
    benchmark.main()
    content = json.loads(output.read_text())
    model = base_model.open_model(str(settings.MODEL), dtype=jnp.float32, plan=PLAIN)
    inputs = (
        jnp.zeros((8, *model.family.sample_size, 4)),
        jnp.zeros(8, jnp.int32),
        jnp.zeros((8, 77, model.family.denoiser.module.config.cross_attention_dim)),
    )
    params = jax.eval_shape(
        model.family.denoiser.module.init, jax.random.key(0), *inputs
    )
    kernels = content["kernels"].values()
    # Forward and gradient: two and four products in attention, one and one elsewhere.
    forward = sum(
        each["calls"] * each["flops"] / (3 if each["kind"] == "attention" else 2)
        for each in kernels
    )
    assert forward == pytest.approx(
        flops.count(model.family.denoiser.module.apply, params, *inputs)
    )
    sides = {"ti_flax"} | ({"PyTorch"} if pytorch == "same" else set())
    for each in kernels:
        own = each["kind"] in ("convolutions", "products", "attention")
        assert each["seconds"].keys() == sides | ({"XLA"} if own else set())
        assert all(seconds > 0 for seconds in each["seconds"].values())
    printed = capsys.readouterr().out
    for kind in ("convolutions", "products", "norms", "attention"):
        calls = sum(each["calls"] for each in kernels if each["kind"] == kind)
        assert f"| all {kind} | {calls} |" in printed
