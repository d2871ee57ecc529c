"""Textual Inversion in JAX: teach a frozen diffusion model a new word.

Train with `train_concepts(Config(...))`; use what was learned with `generate_images`,
`load_embedding`, `describe_embedding`, `convert_embedding`, `verify_embedding` and
`push_to_hub`. What a user may have got wrong is a `UserError`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ti_flax.config.run_config import Config
    from ti_flax.formats.convert import convert_embedding
    from ti_flax.formats.describe import describe_embedding
    from ti_flax.formats.find import load_embedding
    from ti_flax.generation.generate import generate_images
    from ti_flax.generation.verify import verify_embedding
    from ti_flax.publishing.push import push_to_hub
    from ti_flax.reports.callbacks import Step, Validation
    from ti_flax.runtime.errors import Stopped, UserError
    from ti_flax.training.run import train_concepts
    from ti_flax.training.trained import Run

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Run",
    "Step",
    "Stopped",
    "UserError",
    "Validation",
    "convert_embedding",
    "describe_embedding",
    "generate_images",
    "load_embedding",
    "push_to_hub",
    "train_concepts",
    "verify_embedding",
]

_HOMES = {
    "Config": "config.run_config",
    "Run": "training.trained",
    "Step": "reports.callbacks",
    "Stopped": "runtime.errors",
    "UserError": "runtime.errors",
    "Validation": "reports.callbacks",
    "convert_embedding": "formats.convert",
    "describe_embedding": "formats.describe",
    "generate_images": "generation.generate",
    "load_embedding": "formats.find",
    "push_to_hub": "publishing.push",
    "train_concepts": "training.run",
    "verify_embedding": "generation.verify",
}


if not TYPE_CHECKING:  # to a checker, any name would be one of ours

    def __getattr__(name: str) -> object:
        """Imports a public name on first use: `--help` must not wait for JAX."""
        if name in _HOMES:
            return getattr(importlib.import_module(f"ti_flax.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'ti_flax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
