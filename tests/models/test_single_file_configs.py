"""The settings of the published models come out of their shapes alone."""

import copy
from typing import Any

import numpy as np
import pytest

from ti_flax.models import families, known, single_file_configs
from ti_flax.models.single_file_configs import Shapes
from ti_flax.models.tensors import Tensor
from ti_flax.models.torch_params import param_shapes, torch_key
from ti_flax.models.unet_config import UNetConfig

# Of SDXL's UNet what each relative changes (their unet/config.json on the Hub).
RELATIVES: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "ssd-1b": {
        "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "transformer_layers_per_block": [1, 2, 4],
    },
    "vega": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 2],
    },
    "koala-700m": {
        "layers_per_block": 1,
        "mid_block_type": None,
        "transformer_layers_per_block": [0, 2, 5],
    },
    "koala-1b": {"layers_per_block": 1, "transformer_layers_per_block": [0, 2, 6]},
}
# Tensors of the published files.
COUNTS = {"sd1": 686, "sd2": 686, "sdxl": 1680, "ssd-1b": 944, "koala-700m": 584}
MILLIONS = {"sdxl": 2567.46, "ssd-1b": 1331.33, "vega": 745.23, "koala-700m": 782.82}
MILLIONS |= {"koala-1b": 1161.18}


def configs(kind: str) -> known.Configs:
    made = {"sd1": known.SD15, "sd2": known.SD21}.get(kind, known.SDXL)
    made = copy.deepcopy(made)
    made["unet"].update(RELATIVES.get(kind, {}))
    return made


def tensors(own: known.Configs, part: str) -> list[Tensor]:
    """Every tensor of a network by its shape; no number is there."""
    import jax

    module = families.make_family({"model_index": {}, **own}).parts[part]
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(module)):
        shape = leaf.shape
        if path[-1].key == "kernel":
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}[len(shape)]
            shape = tuple(shape[axis] for axis in axes)
        prefix = "text_model." if part.startswith("text") else ""
        key = torch_key(path)
        key = key if key.startswith("text_projection") else prefix + key
        found.append(Tensor(key, shape, np.dtype(np.float32), unread))
    return found


def unread() -> np.ndarray:
    raise AssertionError("shapes tell it")


@pytest.mark.parametrize("kind", ("sd1", "sd2", *RELATIVES))
def test_a_unets_settings_are_the_published(kind: str) -> None:
    own = configs(kind)
    found = tensors(own, "unet")
    if kind in COUNTS:
        assert len(found) == COUNTS[kind]
    if kind in MILLIONS:
        millions = sum(int(np.prod(tensor.shape)) for tensor in found) / 1e6
        assert round(millions, 2) == MILLIONS[kind]
    shapes = Shapes("file", "unet", found)
    of = single_file_configs.kind_of(shapes)
    assert of == (kind if kind in ("sd1", "sd2") else "sdxl")
    config = single_file_configs.unet(shapes, of)
    assert UNetConfig.from_json(config) == UNetConfig.from_json(own["unet"])
    assert single_file_configs.kind_of_settings(own["unet"]) == of
    if kind.startswith("koala"):
        # The depth of a level that does not attend is 0 there, and 1 in all others.
        own["unet"]["transformer_layers_per_block"][0] = 1
    for key, value in own["unet"].items():
        assert config[key] == value, key


@pytest.mark.parametrize("kind", ("sd1", "sd2", "sdxl"))
def test_the_settings_of_the_other_parts_are_the_published(kind: str) -> None:
    own = configs(kind)
    parts = [part for part in own if part.startswith("text")]
    for part in parts:
        shapes = Shapes("file", part, tensors(own, part))
        config = single_file_configs.text_encoder(shapes, kind, part)
        # With the published 2, transformers pools at a learned word.
        eos = 49407 if kind == "sdxl" else 2
        assert config == {**own[part], "eos_token_id": eos}
    shapes = Shapes("file", "vae", tensors(own, "vae"))
    assert single_file_configs.vae(shapes, kind) == own["vae"]
