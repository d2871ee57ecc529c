"""The benchmark's PyTorch takes our step, and the table says what was measured."""

import functools
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slots

from ti_flax import benchmark
from ti_flax.benchmarks import step
from ti_flax.benchmarks.keys import StepKeys
from ti_flax.models import families, known
from ti_flax.models.random_params import random_params
from ti_flax.quickstart import settings
from ti_flax.runtime import errors
from ti_flax.step import train_step
from ti_flax.step.bank import Batch, draw_batch
from ti_flax.step.slots import stack
from ti_flax.training.inputs import read_inputs
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import encode_buckets, load, make_encode, make_slot


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def to_torch(torch, tree):
    """Arrays in Flax's layouts as tensors in PyTorch's: HWIO to OIHW, IO to OI."""

    def convert(path, leaf):
        tensor = torch.from_numpy(np.array(leaf, np.float32))
        if path[-1].key == "kernel":
            order = (3, 2, 0, 1) if tensor.ndim == 4 else (1, 0)
            tensor = tensor.permute(order).contiguous()
        return tensor

    return jax.tree_util.tree_map_with_path(convert, tree)


def torch_params(recipe, torch, *extra):
    frozen = {
        name: random_params(slots.CONFIGS, name, seed)
        for seed, name in enumerate(("text_encoder", "unet", *extra))
    }
    return frozen, {name: to_torch(torch, tree) for name, tree in frozen.items()}


def test_pytorch_takes_our_step(torch):
    """Same weights, examples and noise: same loss, same gradient of the row."""
    from ti_flax.benchmarks import step_torch

    recipe = slots.make_recipe(batch=2)
    frozen, params = torch_params(recipe, torch)
    random = np.random.default_rng(0)
    shape = (2, 4, 4, 4)
    latents, noise = random.normal(size=(2, *shape)).astype(np.float32)
    timesteps = np.array([100, 900], np.int32)
    ids = random.integers(0, slots.VOCABULARY, (2, 77)).astype(np.int32)
    ids[:, 3] = slots.VOCABULARY
    row = random.normal(size=(1, slots.WIDTH)).astype(np.float32)

    batch = Batch(
        latents[None],
        noise[None],
        timesteps[None],
        {"text_encoder": ids[None]},
        np.zeros((1, 2, 6), np.int32),
    )
    compute = jax.jit(functools.partial(train_step.gradients, recipe=recipe))
    (loss,), grads = compute({"text_encoder": row[None]}, frozen, batch)

    learned = torch.tensor(row, requires_grad=True)
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    words = torch.nn.functional.embedding(
        torch.tensor(ids).long(), torch.cat([table, learned])
    )
    text, net = (m.config for m in recipe.family.trained_through.values())
    _, context = step_torch.read(params["text_encoder"], words, text)
    abar = torch.tensor(np.array(recipe.family.process.alphas_cumprod))[timesteps]
    abar = abar[:, None, None, None]
    x0, eps = (torch.tensor(np.moveaxis(x, -1, 1)) for x in (latents, noise))
    predicted = step_torch.predict(
        params["unet"],
        abar.sqrt() * x0 + (1 - abar).sqrt() * eps,
        torch.tensor(timesteps),
        net,
        context,
    )
    their_loss = torch.nn.functional.mse_loss(predicted, eps)
    their_loss.backward()
    assert float(loss) == pytest.approx(float(their_loss.detach()), rel=1e-5)
    ours, theirs = np.asarray(grads["text_encoder"][0]), learned.grad.numpy()
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_pytorch_encodes_as_our_vae(torch):
    from ti_flax.benchmarks import step_torch

    module = slots.FAMILY.parts["vae"]
    frozen, params = torch_params(None, torch, "vae")
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    ours = module.apply({"params": frozen["vae"]}, jnp.asarray(pixels), method="encode")
    theirs = step_torch.encode(
        params["vae"], torch.tensor(np.moveaxis(pixels, -1, 1)), module.config
    )
    np.testing.assert_allclose(np.moveaxis(theirs.numpy(), 1, -1), ours, atol=1e-4)


def test_pytorch_takes_our_step_of_sdxl(torch):
    """Same weights, rows, ids and sizes: the same prediction of both UNets."""
    from ti_flax.benchmarks import step_torch

    configs, random = known.TINY_XL, np.random.default_rng(0)
    family = families.make_family(configs)
    frozen = {name: random_params(configs, name) for name in family.trained_through}
    params = {name: to_torch(torch, tree) for name, tree in frozen.items()}
    ids, rows, words = {}, {}, {}
    for each in family.text_encoders:
        ids[each.name] = random.integers(0, each.vocab_size, (2, 77)).astype(np.int32)
        ids[each.name][:, 3] = each.vocab_size
        ids[each.name][0, 50] = ids[each.name][1, 60] = each.module.eos
        rows[each.name] = random.normal(size=(2, 1, each.width)).astype(np.float32)
        table = params[each.name]["embeddings"]["token_embedding"]["embedding"]
        own = [torch.cat([table, torch.tensor(row)]) for row in rows[each.name]]
        words[each.name] = torch.stack(
            [
                w[torch.tensor(i).long()]
                for w, i in zip(own, ids[each.name], strict=True)
            ]
        )
    sizes = random.integers(0, 2000, (2, 6)).astype(np.int32)
    x_t = random.normal(size=(2, 8, 8, 4)).astype(np.float32)
    timesteps = np.array([3, 900], np.int32)
    told = jax.jit(family.encode_text)(frozen, ids, rows, sizes)
    apply = jax.jit(family.denoiser.module.apply)
    ours = apply({"params": frozen["unet"]}, x_t, timesteps, *told)
    batch = {
        "ids": {name: torch.tensor(each) for name, each in ids.items()},
        "sizes": torch.tensor(sizes),
    }
    theirs = step_torch.predict(
        params["unet"],
        torch.tensor(np.moveaxis(x_t, -1, 1)),
        torch.tensor(timesteps),
        family.denoiser.module.config,
        *step_torch.tell(params, words, batch, family.text_encoders),
    )
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), atol=2e-4)


@pytest.mark.parametrize("script", [False, True])
def test_pytorchs_step_moves_the_learned_row_alone(torch, script):
    from ti_flax.benchmarks import step_torch

    recipe = slots.make_recipe(batch=1)
    _, params = torch_params(recipe, torch, "vae")
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    ids = torch.full((1, 77), slots.VOCABULARY)
    take_step = step_torch.make_step(
        params,
        slots.FAMILY,
        torch.tensor(np.array(recipe.family.process.alphas_cumprod)),
        {
            "ids": {"text_encoder": ids},
            "moments": torch.randn(1, 8, 4, 4),
            "pixels": torch.rand(1, 3, 8, 8),
        },
        script,
        compiled=False,
    )
    learned = take_step.learned["text_encoder"]
    before = learned.detach().clone()
    assert torch.isfinite(take_step())
    moved = learned.detach() - before
    assert torch.all(moved[-1] != 0)
    assert len(moved) == (len(table) + 1 if script else 1)
    assert not torch.any(moved[:-1])


def test_the_table_is_what_was_measured(tmp_path, monkeypatch, capsys):
    """Our side at the quickstart's shape, in a process of its own."""
    output = tmp_path / "step.json"
    argv = ["--model", "quickstart", "--repeats", "2", "--train_batch_size", "8"]
    monkeypatch.setattr(sys, "argv", ["benchmark", "step", *argv, f"--output={output}"])
    benchmark.main()
    side = json.loads(output.read_text())["sides"]["ti_flax"]
    assert len(side["seconds"]) == 2
    median = np.median(side["seconds"])
    assert side["examples_a_second"] == pytest.approx(8 / median)
    assert side["share_of_peak"] == pytest.approx(
        side["flops"] / median / side["peak_flops"]
    )
    assert 0 < side["overhead_seconds"] < median
    assert side["peak_bytes"] > 2**28
    assert side["first_step_seconds"] > side["compile_seconds"]
    printed = capsys.readouterr().out
    assert f"| examples/s | {side['examples_a_second']:.4g} |" in printed


@pytest.mark.parametrize(
    "pytorch", ["same", pytest.param("script", marks=pytest.mark.slow)]
)
def test_pytorch_is_measured_in_turn_with_ours(tmp_path, pytorch):
    pytest.importorskip("torch")
    keys = StepKeys(
        model="quickstart",
        resolution=64,
        repeats=2,
        pytorch=pytorch,
        pytorch_python=sys.executable,
        output=tmp_path / "step.json",
    )
    sides = step.measure(keys)["sides"]
    assert list(sides) == ["ti_flax", "PyTorch"]
    for side in sides.values():
        assert len(side["seconds"]) == 2
        assert side["flops_a_second"] > 0
    assert ("script" in sides["PyTorch"]["library"]) == (pytorch == "script")


def test_a_python_without_pytorch_is_named(tmp_path):
    keys = StepKeys(
        model="quickstart",
        pytorch="same",
        # The environment's interpreter without the environment's packages.
        pytorch_python=Path(sys.executable).resolve(),
    )
    with pytest.raises(errors.UserError, match=r"has no \w+; pip install it there"):
        step.measure(keys)


def test_mistakes_come_as_one_line(monkeypatch, tmp_path):
    keys = StepKeys(model="quickstart", attention="splash", repeats=1)
    with pytest.raises(errors.UserError, match="splash runs on a TPU"):
        step.measure(keys.model_copy(update={"output": tmp_path / "x.json"}))
    nowhere = keys.model_copy(
        update={"pytorch": "same", "pytorch_python": tmp_path / "python"}
    )
    with pytest.raises(errors.UserError, match="python does not run"):
        step.measure(nowhere)
    monkeypatch.setattr(sys, "argv", ["benchmark", "step", "--resolution", "100"])
    with pytest.raises(errors.UserError, match=r"resolution: expected .* 64"):
        benchmark.main()


@pytest.mark.slow
def test_bfloat16_gradients_are_near_float32s():
    """Of the quickstart's first steps, with every optimisation that a CPU takes.

    2 % by norm. A trained network: in one of random weights and width 8 nothing
    averages the rounding out.
    """
    config = settings.load_config([])
    inputs = read_inputs(config)
    family = inputs.model.family
    recipe = make_recipe(
        config, family, math.prod(inputs.buckets[0].latents), inputs.mesh
    )
    autoencoder = inputs.model.load(family.autoencoder.name)
    resident = load(inputs, autoencoder, previews=False)
    encode = make_encode(family, autoencoder)
    encoded = encode_buckets(config, inputs, encode, progress=False)
    rows, bank = stack([make_slot(config, inputs, resident, encoded)])
    draw = jax.jit(functools.partial(draw_batch, family=family))
    batches = [draw(bank, jnp.full(1, index), jnp.arange(8)) for index in range(2)]

    def gradients(dtype):
        chosen = recipe._replace(family=family.clone_denoiser(dtype=dtype))
        params = jax.tree.map(lambda x: x.astype(dtype), resident.params["unet"])
        frozen = {**resident.params, "unet": params}
        compute = jax.jit(functools.partial(train_step.gradients, recipe=chosen))
        return np.array([compute(rows, frozen, b)[1]["text_encoder"] for b in batches])

    exact, ours = gradients(jnp.float32), gradients(jnp.bfloat16)
    assert 0 < np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)
