"""How many slots a step takes, by the same estimate as when to compute again."""

import jax
import jax.numpy as jnp
import pytest
import slots

from ti_flax.models import families, known
from ti_flax.models.torch_params import param_shapes
from ti_flax.runtime import chips, sharding
from ti_flax.step.remat import fit_text, most_slots, needs_remat

LATENTS = 16


@pytest.mark.parametrize("memory", [0, 2**20, 2**22, 2**24, 2**26, float("inf")])
@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("examples", [1, 4, 10])
def test_one_slot_more_would_be_computed_again(memory, devices, examples, monkeypatch):
    monkeypatch.setattr(chips, "device_memory", lambda device: memory)
    mesh = sharding.make_mesh(jax.devices()[:devices])

    def recomputes(count):
        return needs_remat(None, slots.FAMILY, LATENTS, count * examples, mesh)

    count = most_slots(slots.FAMILY, LATENTS, examples, mesh, 16)
    assert 1 <= count <= 16
    assert count == 1 or not recomputes(count)
    assert count == 16 or recomputes(count + 1)


def test_the_estimate_is_met_between_its_ends(monkeypatch):
    """Otherwise the test above would compare nothing."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    found = set()
    for memory in (0, 2**20, 2**21, 2**22, 2**23, 2**24, 2**26):
        monkeypatch.setattr(
            chips, "device_memory", lambda device, memory=memory: memory
        )
        found.add(most_slots(slots.FAMILY, LATENTS, 4, mesh, 16))
    assert {1, 16} < found


@pytest.fixture(scope="module")
def of_sdxl():
    """Tiny, as a TPU has it: the UNet in bfloat16; its weights in bytes."""
    family = families.make_family(known.SHAPES["tiny_sdxl"], jnp.bfloat16)
    params = [*map(param_shapes, family.trained_through.values())]
    leaves = jax.tree.leaves(params)
    return family, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_the_largest_text_encoder_is_halved_where_no_example_fits(
    of_sdxl, monkeypatch, caplog
):
    family, held = of_sdxl
    mesh = sharding.make_mesh(jax.devices()[:1])
    # What one example keeps if blocks are computed again, and the tenth for the rest.
    example = 2.35 * LATENTS * family.denoiser.module.kept_channels * 2
    for memory in (held + 1.01 * example, float("inf")):
        monkeypatch.setattr(chips, "device_memory", lambda _, m=memory: m / 0.9)
        assert fit_text(family, LATENTS, mesh) is family
    assert not told(caplog)
    monkeypatch.setattr(chips, "device_memory", lambda _: (held + 0.99 * example) / 0.9)
    fitted = fit_text(family, LATENTS, mesh)
    first, second = (each.module for each in fitted.text_encoders)
    assert (first.dtype, second.dtype) == (jnp.float32, jnp.bfloat16)
    assert fitted.denoiser == family.denoiser
    (line,) = told(caplog)
    assert line.startswith("text_encoder_2 is computed in bfloat16")
    assert "\n" not in line
    # The table and the norms keep their 4 bytes, the layers' kernels take 2.
    params = param_shapes(second)
    assert params["embeddings"]["token_embedding"]["embedding"].dtype == jnp.float32
    kernels = (leaf for leaf in jax.tree.leaves(params["encoder"]) if leaf.ndim > 1)
    assert {leaf.dtype for leaf in kernels} == {jnp.dtype(jnp.bfloat16)}


def test_what_is_asked_in_float32_or_held_together_stays_so(of_sdxl, monkeypatch):
    monkeypatch.setattr(chips, "device_memory", lambda _: 0)
    family, _ = of_sdxl
    one, two = (sharding.make_mesh(jax.devices()[:2], fsdp=n) for n in (1, 2))
    assert fit_text(slots.FAMILY, LATENTS, one) is slots.FAMILY
    assert fit_text(family, LATENTS, two) is family
    assert fit_text(family, LATENTS, one) is not family
