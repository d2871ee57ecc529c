"""How many slots a step takes, by the same estimate as when to compute again."""

import jax
import pytest
import slots

from ti_flax.runtime import chips, sharding
from ti_flax.step.remat import most_slots, needs_remat

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
