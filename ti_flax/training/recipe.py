"""The step that a configuration describes."""

import jax
import numpy as np
import optax
from jaxtyping import Float32

from ti_flax.config import run_config
from ti_flax.models.family import Family
from ti_flax.runtime.errors import UserError
from ti_flax.step import train_step
from ti_flax.step.optimizer import (
    Hold,
    adamw,
    directional,
    learning_rate_schedule,
    rates_of_steps,
)
from ti_flax.step.remat import needs_remat
from ti_flax.training.objective import make_objective


def make_recipe(
    config: run_config.TrainingKeys,
    family: Family,
    latents: int,
    mesh: jax.sharding.Mesh,
    slots: int = 1,
) -> train_step.StepRecipe:
    """The step of a run on these devices; its largest picture has so many latents.

    Raises `UserError` where the model teaches nothing.
    """
    family.check_trains()
    factors = _learning_rate_factors(config, family)
    still = tuple(name for name, factor in factors.items() if factor == 0)
    remat = needs_remat(
        config.gradient_checkpointing,
        family,
        latents,
        config.train_batch_size * slots,
        mesh,
    )
    return train_step.StepRecipe(
        family=family.clone_denoiser(remat=remat),
        optimizer=_optimizer(config, factors),
        train_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mesh=mesh,
        hold=config.hold_row_norm
        and Hold(config.hold_row_norm, config.row_decay, still),
        objective=make_objective(config, family.process, config.examples_per_step),
        fixed_loss_steps=config.fixed_loss_steps,
        window=config.window,
    )


def _optimizer(
    config: run_config.TrainingKeys, factors: dict[str, float]
) -> optax.GradientTransformationExtraArgs:
    if config.optimizer == "directional":
        return directional(config.directional_prior, config.max_grad_norm, factors)
    return adamw(
        config.adam_beta1,
        config.adam_beta2,
        config.adam_epsilon,
        config.adam_weight_decay,
        config.max_grad_norm,
        factors,
    )


def learning_rates(config: run_config.TrainingKeys) -> Float32[np.ndarray, "T"]:
    """The learning rate of each step, up to where it stays as it is."""
    schedule = learning_rate_schedule(
        config.lr_scheduler,
        config.peak_learning_rate,
        config.lr_warmup_steps,
        config.max_train_steps,
        config.lr_num_cycles,
        config.lr_power,
        config.decay_steps,
    )
    return rates_of_steps(
        schedule, config.lr_scheduler, config.lr_warmup_steps, config.max_train_steps
    )


def _learning_rate_factors(
    config: run_config.TrainingKeys, family: Family
) -> dict[str, float]:
    """The learning rate of each text encoder that has its own, as a factor."""
    rates = {
        "learning_rate_te1": config.learning_rate_te1,
        "learning_rate_te2": config.learning_rate_te2,
    }
    encoders = family.text_encoders
    factors = {}
    for i, (key, rate) in enumerate(rates.items()):
        # At 0 there is nothing to keep of an encoder that is not there.
        if rate is None or (rate == 0 and i >= len(encoders)):
            continue
        if i >= len(encoders):
            raise UserError(
                f"{key}: this model has {len(encoders)} text encoder; leave it out"
            )
        factors[encoders[i].name] = rate / config.learning_rate
    return factors
