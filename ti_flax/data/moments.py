"""Encodes pictures to VAE moments."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike

from ti_flax.runtime.progress import Bar


def encode_in_batches(
    images: Sequence[UInt8[np.ndarray, "H W 3"]] | UInt8[np.ndarray, "N H W 3"],
    encode: Callable[[Float32[np.ndarray, "B H W 3"]], ArrayLike],
    batch_size: int,
    flip: bool,
    progress: bool = True,
) -> Float32[np.ndarray, "N F h w Z"]:
    """Encodes each picture once and, with `flip`, its mirror image (F = 2, else 1).

    The mirror's moments come from mirrored pixels: the VAE's kernels are not symmetric
    and its downsampling pads one side only, so mirrored moments are not the moments of
    the mirrored picture.

    Args:
        images: 8-bit RGB, N of one size.
        encode: maps pixels in [-1, 1] to the moments of their latents, [B, h, w, 2c]
            (mean and log variance). It is always called with B = `batch_size`, the last
            batch filled up with repeats, so that it is compiled once.
        batch_size: pictures per call, mirror images counted.
        flip: encode the mirror images too.
        progress: show how many are encoded.

    Returns:
        The moments; axis F holds the picture, then its mirror image.
    """
    variants = 2 if flip else 1
    total = len(images) * variants
    moments = []
    with Bar(
        total=total,
        desc="encoding pictures",
        unit="picture",
        disable=not progress,
    ) as bar:
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            index = np.arange(start, start + batch_size).clip(max=total - 1)
            batch = np.stack([images[number] for number in index // variants])
            mirrored = index % variants == 1
            batch[mirrored] = batch[mirrored, :, ::-1]
            encoded = np.asarray(encode(_normalize(batch)), np.float32)
            moments.append(encoded[: stop - start])
            bar.update(stop - start)
    flat = np.concatenate(moments)
    return flat.reshape(len(images), variants, *flat.shape[1:])


def _normalize(
    images: UInt8[np.ndarray, "B H W 3"],
) -> Float32[np.ndarray, "B H W 3"]:
    """Maps 0..255 to [-1, 1], in float64 and rounded once as diffusers does."""
    return (images / 127.5 - 1.0).astype(np.float32)
