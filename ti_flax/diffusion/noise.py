"""Noise with more of the low frequencies than white noise has; of one example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def offset(
    key: Key[Array, ""], noise: Float[Array, "h w c"], strength: float
) -> Float[Array, "h w c"]:
    """eps + strength * N(0, 1), one number a channel (Guttenberg 2023, crosslabs.org).

    kohya's `noise_offset`; the variance is 1 + strength^2.
    """
    return noise + strength * jax.random.normal(key, (1, 1, noise.shape[-1]))


def multires(
    key: Key[Array, ""],
    noise: Float[Array, "h w c"],
    iterations: int,
    discount: float,
) -> Float[Array, "h w c"]:
    """Adds noise of ever coarser grids, and scales to a standard deviation of 1.

    eps + sum over i = 0 ... iterations - 1 of discount^i up(N(0, 1)[h / r_i^i,
    w / r_i^i]), r_i ~ U(2, 4), up to the first grid with a side of 1; `up` is bilinear
    (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training"; kohya's
    `multires_noise_iterations` and `multires_noise_discount`).

    A grid has a random size, and an array has not: the normals of the largest grid that
    r_i allows are drawn, and the first of them, as many as the size says, are stretched
    over the picture. That is the same distribution. kohya draws r_i once for a batch
    and divides by the standard deviation of the batch; here both are the example's own,
    as in a batch of one, since an example must not depend on its neighbours.
    """
    height, width, channels = noise.shape
    more = jnp.bool_(True)
    for i in range(iterations):
        # Of r_i >= 2.
        largest = max(1, height >> i), max(1, width >> i)
        size_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        ratio = jax.random.uniform(size_key, minval=2.0, maxval=4.0) ** i
        rows, columns = (
            jnp.maximum(1, jnp.floor(side / ratio)) for side in (height, width)
        )
        grid = jax.random.normal(noise_key, (*largest, channels))
        grid = _stretched(_stretched(grid, rows, height, 0), columns, width, 1)
        noise += jnp.where(more, discount**i, 0.0) * grid
        more &= (rows > 1) & (columns > 1)
        if 1 in largest:
            break
    return noise / jnp.std(noise, ddof=1)


def _stretched(
    grid: Float[Array, "..."], count: Float[Array, ""], side: int, axis: int
) -> Float[Array, "..."]:
    """The first `count` along an axis, interpolated at the middles of `side` cells.

    PyTorch's bilinear `Upsample` without `align_corners`.
    """
    at = jnp.clip((jnp.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
    low = jnp.floor(at)
    share = jnp.expand_dims(at - low, [a for a in range(grid.ndim) if a != axis])
    below, above = (
        jnp.take(grid, index.astype(jnp.int32), axis)
        for index in (low, jnp.minimum(low + 1, count - 1))
    )
    return (1 - share) * below + share * above
