"""What a resumed run must share with its checkpoint."""

import numpy as np
import pytest
import runs
from etils import epath
from safetensors.numpy import save_file

from ti_flax.checkpoints import identity
from ti_flax.runtime import errors
from ti_flax.training.inputs import read_inputs


def found_with(**fingerprints):
    described = {"fingerprints": fingerprints, "versions": identity._versions()}
    return identity.FoundCheckpoint(epath.Path("run"), 2, described)


@pytest.fixture(scope="module")
def fingerprints_of(tiny_model, tmp_path_factory):
    """Fingerprints of a run that starts from rows of one value, or from a word."""
    folder = tmp_path_factory.mktemp("starts")
    pictures = runs.draw_pictures(folder / "pictures")
    width = 32

    def make(value=None, name="start"):
        given = {"initializer_token": None}
        if value is not None:
            file = folder / f"{name}.safetensors"
            save_file({"emb_params": np.full((1, width), value, np.float32)}, file)
            given["initializer_embedding"] = str(file)
        config = runs.make_config(tiny_model, pictures, folder / "run", **given)
        return read_inputs(config).fingerprints()

    return make


def test_a_run_is_not_gone_on_with_from_another_initializer(fingerprints_of):
    """`hold_row_norm: decay` pulls the rows to where they started."""
    first = fingerprints_of(0.5)
    found = found_with(**first)
    identity.check_fingerprints(found, fingerprints_of(0.5, name="moved"))
    for other in (fingerprints_of(0.25), fingerprints_of(None)):
        with pytest.raises(errors.UserError, match="initializer_embedding: "):
            identity.check_fingerprints(found, other)
    with pytest.raises(errors.UserError, match="initializer_embedding: "):
        identity.check_fingerprints(found_with(**fingerprints_of(None)), first)


def test_a_checkpoint_of_a_version_that_took_fewer_fingerprints_is_gone_on_with():
    found = found_with(template_file="ab")
    ours = {"template_file": "ab", "initializer_embedding": "cd"}
    identity.check_fingerprints(found, ours)
    with pytest.raises(errors.UserError, match="template_file: "):
        identity.check_fingerprints(found, ours | {"template_file": "ef"})
