"""Noise with more low frequencies: its statistics, and kohya's program as an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ti_flax.diffusion import noise as noises

SHAPE = (16, 12, 4)


def draw(make, count, shape=SHAPE):
    """Examples of white noise, and what is made of each with a key of its own."""

    def one(key):
        white_key, own_key = jax.random.split(key)
        white = jax.random.normal(white_key, shape)
        return white, make(own_key, white)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))


def test_offset_moves_each_channel_by_its_own_normal_number():
    strength, count = 0.5, 4096
    white, noise = draw(lambda k, x: noises.offset(k, x, strength), count)
    moved = np.asarray(noise - white)
    # The same at every place.
    np.testing.assert_allclose(moved, moved[:, :1, :1] * np.ones(SHAPE), atol=1e-6)
    moved = moved[:, 0, 0]
    # Five standard errors.
    assert np.all(np.abs(moved.mean(0)) < 5 * strength / np.sqrt(count))
    assert np.all(np.abs(moved.std(0) / strength - 1) < 5 / np.sqrt(2 * count))
    across = np.corrcoef(moved.T)[np.triu_indices(4, 1)]
    assert np.all(np.abs(across) < 5 / np.sqrt(count))
    assert np.asarray(noise).var() == pytest.approx(1 + strength**2, rel=0.02)


@pytest.mark.parametrize("count", range(1, 9))
def test_the_first_of_a_grid_are_stretched_as_pytorch_does(count):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
    rows, columns = count, min(count, 5)
    found = noises._stretched(
        noises._stretched(jnp.asarray(grid), jnp.float32(rows), 17, 0),
        jnp.float32(columns),
        12,
        1,
    )
    first = torch.tensor(grid[:rows, :columns]).permute(2, 0, 1)[None]
    expected = torch.nn.Upsample(size=(17, 12), mode="bilinear")(first)
    np.testing.assert_allclose(
        found, expected[0].permute(1, 2, 0).numpy(), rtol=1e-5, atol=1e-6
    )


def by_the_formula(random, shape, iterations, discount):
    """One example, by the loop of the report that multires noise comes from."""
    torch = pytest.importorskip("torch")
    height, width, channels = shape
    total = torch.tensor(random.normal(size=(1, channels, height, width)))
    for i in range(iterations):
        ratio = random.uniform(2, 4) ** i
        rows, columns = max(1, int(height / ratio)), max(1, int(width / ratio))
        grid = torch.tensor(random.normal(size=(1, channels, rows, columns)))
        up = torch.nn.functional.interpolate(
            grid, (height, width), mode="bilinear", align_corners=False
        )
        total = total + discount**i * up
        if rows == 1 or columns == 1:
            break
    return (total / total.std())[0].permute(1, 2, 0).numpy()


def spectrum(examples):
    """Mean power of each spatial frequency, and its standard error."""
    power = np.abs(np.fft.fft2(examples, axes=(1, 2), norm="ortho")) ** 2
    power = power.mean(axis=3)
    return power.mean(axis=0), power.std(axis=0) / np.sqrt(len(examples))


@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (2, 0.9), (10, 0.6)])
def test_multires_noise_has_the_spectrum_of_its_formula(iterations, discount):
    count = 1000
    _, found = draw(lambda k, x: noises.multires(k, x, iterations, discount), count)
    random = np.random.default_rng(1)
    expected = np.stack(
        [by_the_formula(random, SHAPE, iterations, discount) for _ in range(count)]
    )
    ours, our_error = spectrum(np.asarray(found))
    theirs, their_error = spectrum(expected)
    # 192 frequencies, which are not independent: 4.5 standard errors of the difference.
    apart = np.abs(ours - theirs) / np.hypot(our_error, their_error)
    assert apart.max() < 4.5
    if iterations > 1:
        assert ours[0, 0] > 1.5 * ours[8, 6]


@pytest.mark.parametrize("shape", [(4, 4, 4), (16, 12, 4), (1, 5, 2), (64, 64, 4)])
@pytest.mark.parametrize("iterations", [1, 6, 100])
def test_multires_noise_has_the_variance_of_white_noise(shape, iterations):
    _, found = draw(lambda k, x: noises.multires(k, x, iterations, 0.5), 64, shape)
    found = np.asarray(found).reshape(64, -1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.std(axis=1, ddof=1), 1, rtol=1e-5)
    assert abs(found.mean()) < 0.5


def test_an_example_of_multires_noise_does_not_depend_on_its_neighbours():
    key, white = jax.random.key(3), jax.random.normal(jax.random.key(4), SHAPE)
    alone = noises.multires(key, white, 6, 0.5)
    keys = jnp.stack([jax.random.key(1), key, jax.random.key(2)])
    many = jax.vmap(lambda k, x: noises.multires(k, x, 6, 0.5))(
        keys, jnp.stack([9 * white, white, -white])
    )
    np.testing.assert_allclose(many[1], alone, rtol=1e-6, atol=1e-6)
