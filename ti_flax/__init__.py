"""Textual Inversion in JAX: teach a frozen diffusion model a new word.

Its face is `Config`, `train_concepts`, `load_embedding` and `generate_images`.
"""

import importlib

__version__ = "0.1.0"

_FACE = {
    "Config": "config.run_config",
    "generate_images": "generation.generate",
    "load_embedding": "formats.find",
    "train_concepts": "training.run",
}
__all__ = ["Config", "generate_images", "load_embedding", "train_concepts"]


def __getattr__(name: str) -> object:
    """Imports a public name on first use: `--help` must not wait for JAX."""
    if name in _FACE:
        return getattr(importlib.import_module(f"ti_flax.{_FACE[name]}"), name)
    raise AttributeError(f"module 'ti_flax' has no attribute {name!r}")
