"""Whether a compiled step fits, by the compiler's own figures and words."""

from concurrent import futures

import jax
import numpy as np
import pytest

from ti_flax.runtime import chips
from ti_flax.step.dispatch import TrainSteps


def steps_of(compiling):
    return TrainSteps(pytest.fail, compiling, jax.devices()[0])


@pytest.mark.parametrize(("memory", "fits"), [(2**23 - 1, False), (2**24, True)])
def test_a_step_fits_where_a_device_has_what_the_compiler_says(
    memory, fits, monkeypatch
):
    """4 MiB go in, and as many come out."""
    array, compiling = np.zeros(2**20, np.float32), futures.Future()
    compiling.set_result(jax.jit(lambda x: x + 1).lower(array).compile())
    monkeypatch.setattr(chips, "device_memory", lambda device: memory)
    assert steps_of(compiling).fits() is fits


def test_what_a_compiler_says_of_memory_is_no_other_error():
    for told in ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom", "INTERNAL: x"):
        compiling = futures.Future()
        compiling.set_exception(jax.errors.JaxRuntimeError(told))
        if told.startswith("INTERNAL"):
            with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
                steps_of(compiling).fits()
        else:
            assert not steps_of(compiling).fits()
    with pytest.raises(ValueError, match="shapes were not given"):
        steps_of(None).fits()
