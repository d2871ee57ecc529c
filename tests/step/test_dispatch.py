"""Whether a compiled step fits, by the compiler's own figures and words."""

from concurrent import futures

import jax
import numpy as np
import pytest
import slots

from ti_flax.runtime import chips
from ti_flax.runtime.errors import UserError
from ti_flax.step import dispatch
from ti_flax.step.dispatch import TrainSteps

TOO_LARGE = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom"


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


def refused(told):
    """A program that the compiler refused with these words."""
    compiling = futures.Future()
    compiling.set_exception(jax.errors.JaxRuntimeError(told))
    return compiling


def test_what_a_compiler_says_of_memory_is_no_other_error():
    assert not steps_of(refused(TOO_LARGE)).fits()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        steps_of(refused("INTERNAL: x")).fits()
    with pytest.raises(ValueError, match="shapes were not given"):
        steps_of(None).fits()


@pytest.mark.parametrize(
    ("told", "error", "line"),
    [
        (TOO_LARGE, UserError, "gradient_checkpointing true"),
        ("INTERNAL: x", jax.errors.JaxRuntimeError, "INTERNAL"),
    ],
)
def test_a_step_that_does_not_fit_ends_in_one_line(told, error, line):
    """Of a compiler that refuses it, where a run takes its first step."""
    call = dispatch.compilation.compiled_together(jax.jit(abs), refused(told))
    with pytest.raises(error, match=line):
        TrainSteps(call, None, jax.devices()[0])(*slots.make_arguments(), 1)
