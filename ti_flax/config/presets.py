"""Defaults of other trainers, by the name of a preset."""

from typing import Any

# Values that a preset gives to the keys that the user does not set.
PRESETS: dict[str, dict[str, Any]] = {
    "diffusers": {
        "center_crop": False,
        "adam_weight_decay": 1e-2,
        "initializer_jitter": 0.0,
        "learning_rate": 1e-4,
        # textual_inversion_sdxl.py trains the first text encoder's vectors alone.
        "learning_rate_te2": 0.0,
        "train_batch_size": 16,
        "max_train_steps": 5000,
    },
    # Gal et al. 2022 and its code: 4 pictures on each of two GPUs.
    "paper": {
        "center_crop": False,
        "adam_weight_decay": 1e-2,
        "initializer_jitter": 0.0,
        "learning_rate": 5e-3,
        "scale_lr": True,
        "train_batch_size": 8,
        "max_train_steps": 5000,
    },
}
