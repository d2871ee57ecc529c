"""How rows came about, as short texts that travel with them.

Nothing of the user's machine is among them: no path, no date, no name.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

import ti_flax
from ti_flax.config import run_config
from ti_flax.config.natures import NOTED, TRAVELS, keys_of
from ti_flax.config.training_keys import FIXED_LENGTHS
from ti_flax.hub.ids import model_name


def of_run(
    config: run_config.Config,
    scheduler: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    steps: int,
    rows: Mapping[str, Float[np.ndarray, "K _"]],
) -> dict[str, str]:
    """What a run says about its rows, by text encoder, after `steps` steps.

    Of rows that are held at a length, that is said. `scheduler` is the model's
    scheduler_config.json; `fingerprints` are SHA-256 sums by the key that says where it
    is: of the model's weights, and of the pictures' pixels as they were trained on.
    """
    settings = {
        key: getattr(config, key) for key in keys_of(type(config), (TRAVELS, NOTED))
    }
    about = {
        "version": ti_flax.__version__,
        "base_model": model_name(config.pretrained_model_name_or_path),
        "base_model_sha256": fingerprints["pretrained_model_name_or_path"],
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
        "resolution": str(config.resolution),
        "steps": str(steps),
        "settings": json.dumps(settings, sort_keys=True),
        "pictures_sha256": fingerprints["train_data_dir"],
    }
    if config.hold_row_norm in FIXED_LENGTHS:
        norms = [np.linalg.norm(each, axis=-1) for each in rows.values()]
        about["row_norm"] = " ".join(f"{norm:.4g}" for norm in np.concatenate(norms))
    return about
