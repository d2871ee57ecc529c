"""Programs are compiled for TPUs nobody holds, and the figures are right."""

import functools
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
import slots

from ti_flax import train_compile
from ti_flax.aot import command, flops, programs, report, topologies
from ti_flax.aot import slots as slots_of_a_run
from ti_flax.aot.needs import Needs, compile_for, largest_batch
from ti_flax.benchmarks import random_run
from ti_flax.config import concepts, run_config
from ti_flax.models import attention, known
from ti_flax.quickstart import settings
from ti_flax.runtime import chips, errors, sharding
from ti_flax.step import dispatch, train_step
from ti_flax.step.abstract import RunShapes, frozen_shapes
from ti_flax.step.bank import draw_batch
from ti_flax.step.remat import needs_remat

REQUIRED = {"train_data_dir": "pictures", "placeholder_token": "<x>"}


def make_config(**keys):
    return run_config.Config(
        **{"pretrained_model_name_or_path": str(settings.MODEL)} | REQUIRED | keys
    )


@pytest.fixture
def described():
    """As `topologies.prepare` leaves the environment, until the test ends."""
    pytest.importorskip("libtpu")
    before = dict(os.environ)
    # Of the process itself: libtpu does not read Python's copy.
    topologies.prepare()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("topology", "devices", "kind"),
    [
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v6e:1x1", 1, "TPU v6 lite"),
        ("v5p:2x2x1", 4, "TPU v5"),
        # Both cores of a v4 chip are one device.
        ("v4:2x2x1", 4, "TPU v4"),
        ("v3:2x2", 8, "TPU v3"),
    ],
)
def test_topologies_have_their_devices(described, topology, devices, kind):
    mesh = topologies.make_mesh(topology)
    assert mesh.size == devices
    assert mesh.devices.flat[0].device_kind == kind
    assert chips.chip(mesh).peak_flops > 1e13


@pytest.mark.parametrize("topology", ["v5e-8", "v9:1x1", "v5e:2x3", "v4:2x", ""])
def test_an_unknown_topology_is_one_line(described, topology):
    with pytest.raises(errors.UserError, match="such as v5e:1x1") as raised:
        topologies.make_mesh(topology)
    assert "\n" not in str(raised.value)


def test_a_missing_libtpu_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(errors.UserError, match=r"pip install 'ti_flax\[tpu\]'"):
        topologies.make_mesh("v5e:2x2")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "configs/quickstart.yaml"], "--topology v5e:2x4"),
        (["--topology", "v5e:2x2", "--no_such_key", "1"], "unknown flag"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(monkeypatch, argv, message):
    monkeypatch.setattr(sys, "argv", ["train_compile", *argv])
    with pytest.raises(errors.UserError, match=message):
        train_compile.main()


@pytest.mark.parametrize(
    "topology", ["v5e:2x2", pytest.param("v4:2x2x1", marks=pytest.mark.slow)]
)
def test_the_quickstart_compiles(described, topology):
    mesh = topologies.make_mesh(topology)
    keys = make_config(resolution=64, train_batch_size=8, mixed_precision="bf16")
    model = programs.open_shapes(keys, mesh)
    needs = compile_for(programs.lower_train_steps(keys, model, mesh))
    frozen = frozen_shapes(programs.recipe_of(keys, model, mesh))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    # Tiles of the TPU's memory are filled up, small biases above all.
    assert weights < needs.arguments < 1.5 * weights
    assert needs.peak > needs.arguments + needs.temporaries > weights
    assert needs.traffic > weights
    forward = compile_for(programs.lower_forward(keys, model, mesh))
    assert 0 < forward.temporaries < needs.temporaries


def test_padded_splash_attention_compiles_and_keeps_no_scores(described):
    """SDXL at 832 x 1216 px, an example a chip, forward and backward."""
    mesh = topologies.make_mesh("v5e:2x2")
    shape, where = (mesh.size, 3952, 10, 64), sharding.over_examples(mesh)
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)

    def needs(name):
        plan = attention.make_plan(name, mesh)

        def both(q, k, v, d_out):
            attend = functools.partial(attention.attend, plan=plan)
            out, pull_back = jax.vjp(attend, q, k, v)
            return out, pull_back(d_out)

        return compile_for(jax.jit(both).lower(array, array, array, array))

    assert 10 * needs("auto").temporaries < needs("plain").temporaries


@pytest.mark.slow  # two programs of Stable Diffusion for a TPU: minutes
def test_splash_attention_takes_a_third_of_the_memory(described):
    """SD 1.5 at 512 px, 4 examples a chip of v5e:2x4, in bfloat16."""
    mesh = topologies.make_mesh("v5e:2x4")
    keys = make_config(resolution=512, train_batch_size=32, mixed_precision="bf16")

    def needs(name):
        plan = attention.make_plan(name, mesh)
        model = random_run.make_model(known.SHAPES["sd15"], jnp.bfloat16, plan)
        return compile_for(programs.lower_train_steps(keys, model, mesh))

    ours, plain = needs("auto"), needs("plain")
    assert ours.peak < 8 * 2**30
    assert 3 * ours.temporaries < plain.temporaries
    assert 3 * ours.traffic < plain.traffic


@pytest.mark.slow  # one program of SDXL for a TPU: minutes
def test_sdxl_trains_on_one_v5e(described):
    """At 1024 px with 4 examples, as configs/sdxl.yaml has it, on 16 GiB."""
    mesh = topologies.make_mesh("v5e:1x1")
    keys = make_config(resolution=1024, train_batch_size=4, mixed_precision="bf16")
    plan = attention.make_plan("auto", mesh)
    model = random_run.make_model(known.SHAPES["sdxl"], jnp.bfloat16, plan)
    needs = compile_for(programs.lower_train_steps(keys, model, mesh))
    assert 7 * 2**30 < needs.peak < 12 * 2**30


def test_a_program_too_large_for_the_memory_does_not_fit(described):
    mesh = topologies.make_mesh("v5e:1x1")
    where = sharding.replicated(mesh)

    def lowered(gib):
        shape = jax.ShapeDtypeStruct((gib, 2**28), jnp.float32, sharding=where)
        return jax.jit(lambda x: x[::-1] + 1).lower(shape)

    assert compile_for(lowered(1)).peak == pytest.approx(2**31, rel=0.01)
    assert compile_for(lowered(9)) is None


def test_a_batch_beyond_which_memory_grows_faster_is_found_soon():
    """SD 1.5 on a v5e: what 8 and 24 examples need says nothing of 60."""
    compiled = []

    def needs_at(batch):
        compiled.append(batch)
        peak = 2000 + 40 * batch + 300 * max(0, batch - 30)
        return needs_of(peak) if peak <= 16000 else None

    found = largest_batch(needs_at, 4, 16000, most=512)
    assert found == (16000 - 2000 + 300 * 30) // 340
    assert len(compiled) < 16


def needs_of(peak):
    return Needs(arguments=0, temporaries=peak, peak=peak, traffic=0.0)


@pytest.mark.parametrize("largest", [0, 1, 5, 23, 24, 64, 100])
@pytest.mark.parametrize("first", [1, 4, 30])
@pytest.mark.parametrize("power", [0.9, 1.0, 1.1])
def test_the_largest_batch_is_confirmed_by_compiling_it(largest, first, power):
    compiled = []

    def needs_at(batch):
        compiled.append(batch)
        return needs_of(int(100 + 10 * batch**power)) if batch <= largest else None

    memory_bytes = int(100 + 10 * (largest + 0.5) ** power)
    found = largest_batch(needs_at, first, memory_bytes, most=64)
    assert found == min(largest, 64)
    assert found == 0 or found in compiled
    assert found == 64 or found + 1 in compiled
    assert len(compiled) == len(set(compiled)) < 20


class Programs(NamedTuple):
    """A train step that is compiled by counting its examples."""

    examples: int
    slots: int


@pytest.fixture
def counting(described, monkeypatch):
    """Programs fit with at most 10 examples a device, and one less for 4 slots."""
    compiled = []

    def lower_train_steps(config, model, mesh, only=None, slots=1):
        examples = sharding.padded_batch(config.train_batch_size * slots, mesh)
        return Programs(examples // mesh.size, slots)

    def compile_for(lowered):
        compiled.append(lowered)
        fits = lowered.examples + lowered.slots / 4 <= 10.25
        return needs_of(2**30 * lowered.examples) if fits else None

    for name in ("lower_forward", "lower_encode", "lower_preview"):
        monkeypatch.setattr(programs, name, lambda *_: Programs(0, 0))
    monkeypatch.setattr(programs, "lower_train_steps", lower_train_steps)
    monkeypatch.setattr(report, "compile_for", compile_for)
    monkeypatch.setattr(flops, "count_step", lambda recipe, run: 1e12)
    return compiled


def lines(*argv):
    argv = ["--topology=v5e:2x4", "--config=configs/quickstart.yaml", *argv]
    (asked, slots, (topology,)), _ = command.read(argv)
    return list(report.lines(asked, slots, topology))


def test_the_most_slots_are_confirmed_by_compiling_them(counting):
    told = lines("--train_batch_size=4")
    assert "  largest  train_batch_size 80, 10 a device; 88 does not compile" in told
    # 20 slots would have no more examples, but more pictures.
    expected = max(s for s in range(1, 21) if -(-4 * s // 8) + s / 4 <= 10.25)
    assert any(
        line.startswith(f"  slots    {expected} of train_batch_size 4, 7 examples")
        and line.endswith(f"; {expected + 1} do not compile")
        for line in told
    )
    assert len(counting) == len({*counting}) + 2  # forward, encode and preview are one


def test_a_batch_that_fits_no_slot_is_told(counting):
    told = lines("--train_batch_size=88")
    assert "  train    does not fit with train_batch_size 88" in told
    assert "  slots    not one of train_batch_size 88 fits" in told


def test_the_step_of_given_slots_is_compiled_and_nothing_is_looked_for(counting):
    told = lines("--train_batch_size=4", "--slots=3")
    assert told[1] == "  slots    3 of train_batch_size 4, 2 examples a device"
    assert told[2].startswith("  train    fits: 2.00 of 16 GiB")
    assert counting[0] == Programs(2, 3) and len(counting) == 4


def test_given_slots_that_do_not_fit_are_told_how_many_do(counting):
    told = lines("--train_batch_size=4", "--slots=30")
    assert "  train    does not fit with train_batch_size 4" in told
    (most,) = (line for line in told if "do not compile" in line)
    assert most.startswith("  slots    13 of train_batch_size 4, 7 examples a device")


@pytest.mark.parametrize(
    ("keys", "slots"), [([], 3), (["--slots=2"], 2), (["--slots=100"], 3)]
)
def test_of_a_list_the_slots_are_those_of_its_run(keys, slots, counting, tmp_path):
    path = tmp_path / "list.yaml"
    line = "{train_data_dir: x, placeholder_token: <%d>, num_vectors: %d}"
    path.write_text("\n".join(f"c{n}: {line % (n, n)}" for n in (1, 3, 2)))
    told = lines("--train_batch_size=8", f"--concepts={path}", *keys)
    assert told[1] == (
        f"  slots    {slots} of train_batch_size 8, {slots} examples a device"
    )
    asked, _ = concepts.load_with_keys(
        ["--config=configs/quickstart.yaml", f"--concepts={path}"]
    )
    assert slots_of_a_run.config_of(asked).num_vectors == 3


def test_each_slot_of_a_program_has_pictures_steps_and_losses_of_its_own():
    mesh = sharding.make_mesh(jax.devices()[:1])
    keys = make_config(resolution=64, train_batch_size=2)
    model = programs.open_shapes(keys, mesh)
    lowered = programs.lower_train_steps(keys, model, mesh, slots=4)
    (state, _, bank, _), _ = lowered.args_info
    assert {leaf.shape[0] for leaf in jax.tree.leaves((state, bank))} == {4}
    _, metrics = lowered.out_info
    assert metrics.loss.shape == (dispatch.MAX_STEPS_A_DISPATCH, 4)


@pytest.mark.parametrize(
    ("name", "resolution", "teraflops"),
    # What PyTorch's FlopCounterMode counts: UNet to the context, text encoder to the
    # rows (../shared/BASELINE.md, section 4).
    [("sd15", 256, 0.3609 + 0.02682)],
)
def test_operations_are_those_that_pytorch_counts(name, resolution, teraflops):
    mesh = sharding.make_mesh(jax.devices()[:1])
    plan = attention.make_plan("plain", mesh)
    model = random_run.make_model(known.SHAPES[name], jnp.bfloat16, plan)
    keys = make_config(resolution=resolution, train_batch_size=1)
    recipe = programs.recipe_of(keys, model, mesh)
    side = model.family.latent_side(resolution)
    found = flops.count_step(recipe, RunShapes.square(side))
    assert found == pytest.approx(1e12 * teraflops, rel=5e-3)


def test_operations_in_loops_and_branches():
    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: x @ w, x)

    assert flops.count(loop, x) == 5 * 2 * 2 * 3 * 3
    both = jax.value_and_grad(lambda x: loop(x).sum())
    assert flops.count(both, x) == 2 * 5 * 2 * 2 * 3 * 3
    # A product that nothing needs is none: the loop is linear in x.
    assert flops.count(jax.grad(lambda x: loop(x).sum()), x) == 5 * 2 * 2 * 3 * 3
    branch = functools.partial(jax.lax.cond, True, lambda x: x @ w, lambda x: x)
    assert flops.count(branch, x) == 2 * 2 * 3 * 3


def test_recomputation_only_where_memory_asks_for_it(monkeypatch):
    keys = make_config(resolution=64, train_batch_size=8)
    mesh = sharding.make_mesh()
    family = programs.open_shapes(keys, mesh).family
    asked = functools.partial(
        needs_remat, family=family, latents=32**2, examples=8, mesh=mesh
    )
    assert not asked(None)
    monkeypatch.setattr(chips, "device_memory", lambda device: 2**24)
    assert asked(None)
    for choice in (True, False):
        assert asked(choice) is choice


@pytest.mark.slow  # four programs for a TPU: minutes
def test_the_command_prints_a_report():
    pytest.importorskip("libtpu")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "ti_flax.train_compile", "--topology", "v5e:2x2"),
            *("--config", "configs/quickstart.yaml", "--train_batch_size", "2048"),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for expected in ("4 x TPU v5 lite", "train    fits", "2048, 512 a device; no"):
        assert expected in ran.stdout
    assert ran.stdout.count("fits: ") == 3


def test_recomputing_changes_no_gradient():
    recipe = slots.make_recipe()
    state, bank = slots.make_run(recipe, slots.Concept(0, 2, 3, 1))
    frozen = slots.make_frozen(recipe)
    batch = draw_batch(bank, state.step, jnp.arange(4), slots.FAMILY)

    def gradients(remat):
        chosen = recipe._replace(family=recipe.family.clone_denoiser(remat=remat))
        compute = jax.jit(functools.partial(train_step.gradients, recipe=chosen))
        lowered = compute.lower(state.rows, frozen, batch)
        return lowered.compile()(state.rows, frozen, batch), lowered.as_text()

    (kept, without), (again, recomputed) = gradients(False), gradients(True)
    products = "stablehlo.dot_general"
    assert recomputed.count(products) > without.count(products)
    for ours, theirs in zip(*map(jax.tree.leaves, (kept, again)), strict=True):
        assert jnp.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
