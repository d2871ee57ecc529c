"""The step that a configuration describes, and the shapes of its arguments."""

import jax
import jax.numpy as jnp
import numpy as np

from ti_flax.config import run_config
from ti_flax.diffusion.process import Schedule
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime import sharding
from ti_flax.step import train_step
from ti_flax.step.abstract import abstract, frozen_shapes
from ti_flax.step.bank import Bank
from ti_flax.step.optimizer import Hold, adamw, learning_rate_schedule
from ti_flax.step.remat import needs_remat
from ti_flax.step.state import State, init_state
from ti_flax.training.inputs import Inputs


def abstract_arguments(
    config: run_config.Config, inputs: Inputs, recipe: train_step.Recipe
) -> tuple[State, dict[str, Params], Bank]:
    """Shapes and places of what a dispatch takes, known before weights are read."""
    everywhere, config_ = sharding.replicated(recipe.mesh), inputs.model.vae.config
    side = config.resolution // config_.downscale
    views = len(inputs.pictures.images), 1 + config.random_flip
    moments = jax.ShapeDtypeStruct(
        (*views, side, side, 2 * config_.latent_channels), jnp.float32
    )
    shape = (1, config.num_vectors, recipe.text_encoder.config.hidden_size)
    rows = {"text_encoder": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(lambda rows: init_state(rows, recipe.optimizer), rows)
    bank = jax.eval_shape(
        lambda moments, rows: make_bank(config, moments, inputs.prompts, rows, 0.0),
        moments,
        jax.ShapeDtypeStruct(shape[1:], jnp.float32),
    )
    state, bank = abstract((state, bank), everywhere)
    return state, frozen_shapes(recipe), bank


def make_recipe(
    config: run_config.Config,
    model: base_model.BaseModel,
    schedule: Schedule,
    mesh: jax.sharding.Mesh,
) -> train_step.Recipe:
    """The step that the configuration describes."""
    learning_rate = learning_rate_schedule(
        config.lr_scheduler,
        config.peak_learning_rate,
        config.lr_warmup_steps,
        config.max_train_steps,
        config.lr_num_cycles,
        config.lr_power,
    )
    optimizer = adamw(
        learning_rate,
        config.adam_beta1,
        config.adam_beta2,
        config.adam_epsilon,
        config.adam_weight_decay,
        config.max_grad_norm,
    )
    return train_step.Recipe(
        text_encoder=model.text_encoder,
        unet=model.unet.clone(remat=needs_remat(config, model, mesh)),
        scaling_factor=model.vae.config.scaling_factor,
        schedule=schedule,
        optimizer=optimizer,
        learning_rate=learning_rate,
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mesh=mesh,
        hold=config.hold_row_norm and Hold(config.hold_row_norm, config.row_decay),
    )


def make_bank(
    config: run_config.Config,
    moments: np.ndarray | jax.Array,
    prompts: np.ndarray,
    rows: np.ndarray | jax.Array,
    norm: float,
) -> Bank:
    """One concept's pictures, prompts, initial rows and length as slot 0 of 1."""
    return Bank(
        keys=jax.random.key(config.seed)[None],
        moments=jnp.asarray(moments)[None],
        num_pictures=jnp.array([len(moments)], jnp.int32),
        prompts=jnp.asarray(prompts)[None],
        num_prompts=jnp.array([len(prompts)], jnp.int32),
        row_mask=jnp.ones((1, len(rows)), bool),
        max_train_steps=jnp.array([config.max_train_steps], jnp.int32),
        initial={"text_encoder": jnp.asarray(rows)[None]},
        norm=jnp.array([norm], jnp.float32),
    )
