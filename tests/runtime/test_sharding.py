import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.runtime import errors, sharding


def test_examples_are_split_over_every_device_of_the_mesh():
    mesh = sharding.make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    examples = jax.device_put(np.arange(16.0), sharding.over_examples(mesh))
    assert {shard.data.shape for shard in examples.addressable_shards} == {(2,)}
    assert len(examples.addressable_shards) == 8


@pytest.mark.parametrize("devices", range(1, 9))
@pytest.mark.parametrize("examples", [1, 3, 4, 8, 12])
def test_a_batch_is_filled_up_to_the_devices(examples, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    array = jnp.arange(1.0, examples + 1)
    padded = sharding.pad_examples(array, mesh)
    assert len(padded) % devices == 0 and len(padded) - examples < devices
    assert padded.tolist() == [*array, *[examples] * (len(padded) - examples)]
    assert sharding.padded_batch(examples, mesh) == len(padded)
    jax.device_put(padded, sharding.over_examples(mesh))  # splits


def test_a_batch_that_leaves_devices_idle_is_told(caplog):
    mesh = sharding.make_mesh()
    sharding.warn_of_padding(16, mesh)
    assert not caplog.messages
    sharding.warn_of_padding(4, mesh)
    sharding.warn_of_padding(12, mesh)
    assert caplog.messages == [
        "train_batch_size: 4 examples on 8 devices take as long as 8; set a multiple "
        "of 8 to use every device",
        "train_batch_size: 12 examples on 8 devices take as long as 16; set a multiple "
        "of 8 to use every device",
    ]


def test_fsdp_must_divide_the_devices():
    with pytest.raises(errors.UserError, match=r"3 .* 8 devices"):
        sharding.make_mesh(fsdp=3)
