"""Many concepts learned in one run, each in a slot of the train step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32
from tqdm import tqdm

from ti_flax.benchmarks.quality import held_out
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, Frozen
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config import run_config
from ti_flax.diffusion.process import Schedule
from ti_flax.runtime import sharding
from ti_flax.step import dispatch
from ti_flax.step.bank import Bank
from ti_flax.step.state import init_state
from ti_flax.text import templates
from ti_flax.text.initial_rows import initial_rows, initializer_ids
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import encode_pictures

_STEPS_A_DISPATCH = 10
_ENCODED_AT_ONCE = 10


def learn(
    config: run_config.Config,
    frozen: Frozen,
    concepts: Sequence[Concept],
    progress: bool,
) -> Float32[np.ndarray, "S D"]:
    """The learned row of each concept; `config` has the hyperparameters of all."""
    schedule = Schedule.from_json(frozen.model.scheduler)
    recipe = make_recipe(config, frozen.model, schedule, frozen.mesh)
    rows = _initial_rows(config, frozen, concepts)
    state = init_state({"text_encoder": jnp.asarray(rows)}, recipe.optimizer)
    bank = _bank(config, frozen, concepts)
    state, bank = jax.device_put((state, bank), sharding.replicated(frozen.mesh))
    train_steps = dispatch.compile_train_steps(recipe)
    with tqdm(
        total=config.max_train_steps, desc="training", unit="step", disable=not progress
    ) as bar:
        for done in range(0, config.max_train_steps, _STEPS_A_DISPATCH):
            num_steps = min(_STEPS_A_DISPATCH, config.max_train_steps - done)
            state, metrics = train_steps(state, frozen.params, bank, num_steps)
            jax.block_until_ready(metrics)
            bar.update(num_steps)
    return np.asarray(state.rows["text_encoder"][:, 0])


def _initial_rows(
    config: run_config.Config, frozen: Frozen, concepts: Sequence[Concept]
) -> Float32[np.ndarray, "S 1 D"]:
    tokenizer, table = frozen.tokenizer(), frozen.table()
    return np.stack(
        [
            initial_rows(
                table,
                initializer_ids(tokenizer, concept.initializer),
                1,
                config.initializer_jitter,
                config.seed,
            )
            for concept in concepts
        ]
    )


def _bank(
    config: run_config.Config, frozen: Frozen, concepts: Sequence[Concept]
) -> Bank:
    """Pictures and prompts of each concept in its slot."""
    slots = len(concepts)
    images = np.stack(
        [
            held_out.training_pictures(concept.target, config.seed + slot)
            for slot, concept in enumerate(concepts)
        ]
    )
    moments = encode_pictures(
        frozen.model,
        frozen.params["vae"],
        images.reshape(-1, *images.shape[2:]),
        flip=True,
        batch_size=_ENCODED_AT_ONCE,
        progress=False,
    )
    prompts = [_training_ids(frozen, c.learnable_property) for c in concepts]
    longest = max(map(len, prompts))
    return Bank(
        keys=jax.random.split(jax.random.key(config.seed), slots),
        moments=moments.reshape(slots, -1, *moments.shape[1:]),
        num_pictures=np.full(slots, images.shape[1], np.int32),
        prompts=np.stack(
            [np.pad(ids, ((0, longest - len(ids)), (0, 0))) for ids in prompts]
        ),
        num_prompts=np.array([*map(len, prompts)], np.int32),
        row_mask=np.ones((slots, 1), bool),
        max_train_steps=np.full(slots, config.max_train_steps, np.int32),
    )


def _training_ids(frozen: Frozen, learnable_property: str) -> Int32[np.ndarray, "P L"]:
    sentences = templates.prompt_templates(learnable_property)
    return frozen.tokenize([s.replace(templates.SLOT, PLACEHOLDER) for s in sentences])
