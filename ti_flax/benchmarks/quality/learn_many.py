"""Many concepts learned in one run, each in a slot of the train step."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float32, Int32
from tqdm import tqdm

from ti_flax.benchmarks.quality import held_out
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config import run_config
from ti_flax.quickstart.critters import drawing
from ti_flax.runtime import sharding
from ti_flax.step import dispatch
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import init_state
from ti_flax.text import templates
from ti_flax.text.initial_rows import (
    initial_rows,
    initializer_ids,
    vocabulary_norms,
)
from ti_flax.training.recipe import make_recipe
from ti_flax.training.resident import encode_pictures, held_norm

_STEPS_A_DISPATCH = 10
_ENCODED_AT_ONCE = 10


def learn(
    config: run_config.Config,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    progress: bool,
) -> Float32[np.ndarray, "S D"]:
    """The learned row of each concept; `config` has the hyperparameters of all."""
    model = frozen.model
    side = model.family.latent_side(drawing.SIDE)
    recipe = make_recipe(config, model.family, side**2, frozen.mesh)
    rows, bank = stack(_slots(config, frozen, concepts))
    state = init_state(rows, recipe.optimizer)
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
    return np.asarray(state.rows[frozen.encoder.name][:, 0])


def _slots(
    config: run_config.Config, frozen: LoadedModel, concepts: Sequence[Concept]
) -> list[Slot]:
    """Each concept's pictures and prompts, and the row that it starts from."""
    images = np.stack(
        [
            held_out.training_pictures(concept.target, config.seed + index)
            for index, concept in enumerate(concepts)
        ]
    )
    family, count = frozen.model.family, images.shape[1]
    moments = encode_pictures(
        family,
        frozen.params[family.autoencoder.name],
        images.reshape(-1, *images.shape[2:]),
        flip=True,
        batch_size=_ENCODED_AT_ONCE,
        progress=False,
    )
    tokenizer, table, name = frozen.tokenizer(), frozen.table(), frozen.encoder.name
    norm = held_norm(config, *vocabulary_norms(table))
    keys = jax.random.split(jax.random.key(config.seed), len(concepts))
    return [
        Slot(
            seed_key=keys[index],
            buckets=[
                Encoded(
                    moments=moments[index * count : (index + 1) * count],
                    sizes=np.zeros((count, 2, 6), np.int32),
                )
            ],
            prompts=_training_ids(frozen, concept.learnable_property),
            rows={
                name: initial_rows(
                    table,
                    initializer_ids(tokenizer, concept.initializer),
                    1,
                    config.initializer_jitter,
                    config.seed,
                )
            },
            max_train_steps=config.max_train_steps,
            norms={name: norm},
        )
        for index, concept in enumerate(concepts)
    ]


def _training_ids(
    frozen: LoadedModel, learnable_property: str
) -> dict[str, Int32[np.ndarray, "P L"]]:
    sentences = templates.prompt_templates(learnable_property)
    return frozen.tokenize([s.replace(templates.SLOT, PLACEHOLDER) for s in sentences])
