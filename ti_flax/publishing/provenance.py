"""How rows came about, as short texts that travel with them.

Nothing of the user's machine is among them: no path, no date, no name.
"""

import json
from collections.abc import Mapping
from typing import Any

import ti_flax
from ti_flax.config import run_config
from ti_flax.hub.ids import model_name

# Keys of the configuration that make the rows what they are, and are no paths.
_SETTINGS = (
    "revision",
    "variant",
    "mixed_precision",
    "initializer_token",
    "initializer_jitter",
    "num_vectors",
    "learnable_property",
    "resolution",
    "center_crop",
    "random_flip",
    "seed",
    "train_batch_size",
    "gradient_accumulation_steps",
    "max_train_steps",
    "learning_rate",
    "scale_lr",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_weight_decay",
    "max_grad_norm",
)


def of_run(
    config: run_config.Config,
    scheduler: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    steps: int,
) -> dict[str, str]:
    """What a run says about its rows after `steps` steps.

    `scheduler` is the model's scheduler_config.json; `fingerprints` are SHA-256 sums by
    the key that says where it is: of the model's weights, and of the pictures' pixels
    as they were trained on.
    """
    settings = {key: getattr(config, key) for key in _SETTINGS}
    return {
        "version": ti_flax.__version__,
        "base_model": model_name(config.pretrained_model_name_or_path),
        "base_model_sha256": fingerprints["pretrained_model_name_or_path"],
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
        "resolution": str(config.resolution),
        "steps": str(steps),
        "settings": json.dumps(settings, sort_keys=True),
        "pictures_sha256": fingerprints["train_data_dir"],
    }
