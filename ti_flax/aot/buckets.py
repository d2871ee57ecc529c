"""The sizes of the pictures of a run that is only compiled."""

import functools
import logging
from pathlib import Path

from ti_flax.config import run_config
from ti_flax.config.subsets import Subset
from ti_flax.data.buckets import Cropping, Size, choose
from ti_flax.data.folder import read_pictures
from ti_flax.models import base_model
from ti_flax.runtime.errors import UserError
from ti_flax.step.abstract import BucketShape, RunShapes
from ti_flax.training.cropping import cropping, latents

_log = logging.getLogger(__name__)

# Cameras' and screens' aspect ratios, upright and lying, the square first.
_RATIOS = ((1, 1), (3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9))


def run_shapes(config: run_config.Config, model: base_model.BaseModel) -> RunShapes:
    """Of a run on the pictures of `train_data_dir`; or where it is not there, yet, on
    those of the usual aspect ratios, of which so many as `max_buckets` are taken.
    """
    sizes = [(config.resolution, config.resolution)]
    if config.enable_bucket:
        sizes = _sizes(config.train_data_dir, cropping(config), config.folders)
    shapes = latents(config, model.family, sizes)
    return RunShapes(tuple(BucketShape(*each) for each in shapes), config.num_vectors)


@functools.lru_cache(maxsize=1)
def _sizes(folder: Path, rules: Cropping, subsets: tuple[Subset, ...]) -> list[Size]:
    """Kept, as every compiled program asks for them."""
    try:
        return list(read_pictures(folder, rules, subsets).buckets())
    except UserError:
        _log.info("no pictures in train_data_dir: buckets of the usual aspect ratios")
    large = 2 * rules.resolution
    fits = (choose(a * large, b * large, rules) for a, b in _RATIOS)
    sizes = dict.fromkeys(fit.bucket for fit in fits if fit is not None)
    return list(sizes)[: rules.max_buckets]
