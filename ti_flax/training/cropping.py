"""How the keys say that pictures are cut, and what sizes that makes."""

from collections.abc import Iterable

from ti_flax.config import run_config
from ti_flax.data.buckets import Cropping, Size
from ti_flax.models.family import Family


def cropping(config: run_config.Config) -> Cropping:
    """The keys of cropping, by their names."""
    return Cropping(**{key: getattr(config, key) for key in Cropping._fields})


def latents(
    config: run_config.Config, family: Family, sizes: Iterable[Size]
) -> list[tuple[int, int]]:
    """Latents (height, width) of pictures of each size (width, height).

    Raises `UserError` where a side would be no whole number of latents.
    """
    family.latent_side(config.resolution)
    if config.enable_bucket:
        family.latent_side(config.bucket_reso_steps, "bucket_reso_steps")
    side = family.downscale
    return [(height // side, width // side) for width, height in sizes]
