"""A family of networks that cost nothing, handed to the trainer in place of a real one.

The step, its draws, the optimizer and all files are the trainer's own; only what the
networks compute is small.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.models import base_model, clip_text
from ti_flax.models.family import Part
from ti_flax.models.random_params import random_weights
from ti_flax.models.torch_params import param_shapes

open_real = base_model.open_model


class _Embeddings(nn.Module):
    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, ids, rows):
        table = clip_text.TokenEmbedding(
            self.vocab_size, self.width, name="token_embedding"
        )
        return table(ids, rows)


class Text(nn.Module):
    """The embeddings of a prompt, as they are."""

    vocab_size: int
    width: int

    def example_inputs(self):
        return jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 0, self.width))

    @nn.compact
    def __call__(self, ids, rows):
        embeddings = _Embeddings(self.vocab_size, self.width, name="embeddings")
        return embeddings(ids, rows)


class Denoiser(nn.Module):
    """Noise in proportion to x_t and to the sum of the context."""

    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    kept_channels = 8

    def example_inputs(self):
        return jnp.zeros((1, 2, 2, 4)), jnp.zeros(1), jnp.zeros((1, 4, 32))

    @nn.compact
    def __call__(self, x_t, timesteps, context):
        gain = self.param("bias", nn.initializers.zeros, ())
        return x_t * (gain + jnp.tanh(context.sum(axis=(1, 2)))[:, None, None, None])


class Autoencoder(nn.Module):
    """Moments are means of squares of pixels, pixels those of latents."""

    downscale: int
    channels: int

    def example_inputs(self):
        return (jnp.zeros((1, self.downscale, self.downscale, 3)),)

    def setup(self):
        self.bias = self.param("bias", nn.initializers.zeros, ())

    def encode(self, pixels):
        side = (self.downscale, self.downscale)
        grey = nn.avg_pool(pixels, side, side).mean(axis=-1, keepdims=True)
        return self.bias + jnp.tile(grey, (1, 1, 1, 2 * self.channels))

    def decode(self, z):
        squares = z.repeat(self.downscale, axis=1).repeat(self.downscale, axis=2)
        return self.bias + jnp.tile(squares.mean(axis=-1, keepdims=True), 3)

    def __call__(self, pixels):
        return self.encode(pixels)


class FakeModel(base_model.BaseModel):
    """A folder's tokenizer, settings and fingerprint; random weights of the fakes."""

    def load(self, part, sharding=None):
        shapes = param_shapes(self.family.parts[part])
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        params = random_weights(
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=here
                ),
                shapes,
            )
        )
        params = jax.tree.map(np.asarray, params)
        if sharding is None:  # on no device in particular, as the real ones
            return jax.tree.map(jnp.asarray, params)
        return jax.tree.map(
            lambda leaf: jax.device_put(
                leaf, sharding(leaf.shape) if callable(sharding) else sharding
            ),
            params,
        )


def open_fake(*arguments, **settings):
    """As `base_model.open_model`, with the fakes as networks."""
    model = open_real(*arguments, **settings)
    family = model.family
    family = dataclasses.replace(
        family,
        text_encoders=tuple(
            each._replace(module=Text(each.vocab_size, each.width))
            for each in family.text_encoders
        ),
        denoiser=Part(family.denoiser.name, Denoiser()),
        autoencoder=Part(
            family.autoencoder.name,
            Autoencoder(family.downscale, family.latent_channels),
        ),
        picture_params=("bias",),
    )
    return FakeModel(family, model.source, model.scheduler)
