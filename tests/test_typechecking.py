"""What the tests call is checked: types everywhere, shapes where arrays are."""

import jaxtyping
import numpy as np
import pytest

from ti_flax.diffusion import timestep_tables
from ti_flax.runtime import atomic


def test_a_wrong_type_raises():
    with pytest.raises(TypeError, match=r"write_json\(\) parameter path"):
        atomic.write_json("no path", {})


def test_in_a_module_with_arrays_shapes_and_all_other_types_do():
    assert timestep_tables.min_snr_weights(np.ones(3), 5, v=False).shape == (3,)
    for snr, gamma in ((np.ones((2, 3)), 5.0), (np.ones(3), "five")):
        with pytest.raises(jaxtyping.TypeCheckError):
            timestep_tables.min_snr_weights(snr, gamma, v=False)
