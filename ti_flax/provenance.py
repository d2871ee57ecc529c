"""How rows came about, as short texts that travel with them.

Nothing of the user's machine is among them: no path, no date, no name.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

import ti_flax
from ti_flax import config as configuration
from ti_flax.models import weights

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
_BLOCK_BYTES = 4096
_BLOCKS = 64


def of_run(
    config: configuration.Config,
    model: weights.BaseModel,
    pictures: UInt8[np.ndarray, "N H W 3"],
    steps: int,
) -> dict[str, str]:
    """What a run says about its rows after `steps` steps.

    version, base_model (Hub id or the folder's name), base_model_fingerprint,
    prediction_type, resolution in pixels, steps, settings (JSON), pictures_sha256 (of
    the pixels that were trained on) and num_pictures.
    """
    settings = {key: getattr(config, key) for key in _SETTINGS}
    return {
        "version": ti_flax.__version__,
        "base_model": model_name(config.pretrained_model_name_or_path),
        "base_model_fingerprint": fingerprint(model),
        "prediction_type": model.scheduler.get("prediction_type", "epsilon"),
        "resolution": str(config.resolution),
        "steps": str(steps),
        "settings": json.dumps(settings, sort_keys=True),
        "pictures_sha256": hashlib.sha256(pictures.tobytes()).hexdigest(),
        "num_pictures": str(len(pictures)),
    }


def model_name(name_or_path: str) -> str:
    """A Hub id as it is, of a folder its name alone."""
    path = Path(name_or_path).expanduser()
    return path.resolve().name if path.is_dir() else name_or_path


def hub_id(name_or_path: str) -> str | None:
    """The Hub id of a base model, None when it is a folder."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path)
    return name_or_path if is_id and not Path(name_or_path).exists() else None


def fingerprint(model: weights.BaseModel) -> str:
    """A hash by which the weights of text encoder and UNet are known again.

    sha256 over each weight file's size and 64 blocks spread evenly over it, first and
    last included: fine-tuning changes every block, and 4 GB need not be read.
    """
    digest = hashlib.sha256()
    for component in ("text_encoder", "unet"):
        for file in weights.weight_files(model.folder / component, model.variant):
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with open(file, "rb") as opened:
                for block in range(_BLOCKS):
                    start = max(0, size - _BLOCK_BYTES) * block // (_BLOCKS - 1)
                    opened.seek(start)
                    digest.update(opened.read(_BLOCK_BYTES))
    return digest.hexdigest()
