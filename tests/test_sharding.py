import jax
import numpy as np
import pytest

from ti_flax import errors, sharding


def test_examples_are_split_over_every_device_of_the_mesh():
    mesh = sharding.make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    examples = jax.device_put(np.arange(16.0), sharding.over_examples(mesh))
    assert {shard.data.shape for shard in examples.addressable_shards} == {(2,)}
    assert len(examples.addressable_shards) == 8


def test_a_batch_that_does_not_divide_names_both_numbers():
    mesh = sharding.make_mesh()
    sharding.check_batch(16, mesh)
    with pytest.raises(errors.UserError, match=r"12 .* 8 devices"):
        sharding.check_batch(12, mesh)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(errors.UserError, match=r"3 .* 8 devices"):
        sharding.make_mesh(fsdp=3)
