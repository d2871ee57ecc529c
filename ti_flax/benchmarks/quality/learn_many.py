"""Many concepts learned in one run, each in a slot of the train step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ti_flax.benchmarks.quality import held_out
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config import run_config
from ti_flax.data.masks import loss_weights
from ti_flax.quickstart.critters import drawing
from ti_flax.quickstart.critters.drawing import Scene
from ti_flax.runtime import sharding
from ti_flax.runtime.progress import Bar
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
    one_background: bool,
    progress: bool,
) -> Float32[np.ndarray, "S D"]:
    """The learned row of each concept; `config` has the hyperparameters of all."""
    model = frozen.model
    side = model.family.latent_side(drawing.SIDE)
    recipe = make_recipe(config, model.family, side**2, frozen.mesh)
    rows, bank = stack(_slots(config, frozen, concepts, one_background))
    state = init_state(rows, recipe.optimizer)
    state, bank = jax.device_put((state, bank), sharding.replicated(frozen.mesh))
    train_steps = dispatch.compile_train_steps(recipe)
    with Bar(
        total=config.max_train_steps, desc="training", unit="step", disable=not progress
    ) as bar:
        for done in range(0, config.max_train_steps, _STEPS_A_DISPATCH):
            num_steps = min(_STEPS_A_DISPATCH, config.max_train_steps - done)
            state, metrics = train_steps(state, frozen.params, bank, num_steps)
            jax.block_until_ready(metrics)
            bar.update(num_steps)
    return np.asarray(state.rows[frozen.encoder.name][:, 0])


def _slots(
    config: run_config.Config,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    one_background: bool,
) -> list[Slot]:
    """Each concept's pictures and prompts, and the row that it starts from."""
    scenes = {
        concept.number: held_out.training_scenes(concept, config.seed, one_background)
        for concept in concepts
    }
    moments = _encode(frozen, scenes)
    tokenizer, table, name = frozen.tokenizer(), frozen.table(), frozen.encoder.name
    norm = held_norm(config, *vocabulary_norms(table))
    keys = jax.random.split(jax.random.key(config.seed), len(concepts))
    return [
        Slot(
            seed_key=keys[concept.number],
            **_examples(config, frozen, concept, scenes, moments),
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
            unmasked_probability=config.unmasked_probability,
        )
        for concept in concepts
    ]


def _encode(
    frozen: LoadedModel, scenes: Mapping[int, Sequence[Scene]]
) -> dict[int, Float32[np.ndarray, "N F h w Z"]]:
    """Moments of the pictures of each number."""
    pictures = [drawing.draw(scene) for each in scenes.values() for scene in each]
    family = frozen.model.family
    moments = encode_pictures(
        family,
        frozen.params[family.autoencoder.name],
        pictures,
        flip=True,
        batch_size=_ENCODED_AT_ONCE,
        progress=False,
    )
    return dict(zip(scenes, np.split(moments, len(scenes)), strict=True))


def _examples(
    config: run_config.Config,
    frozen: LoadedModel,
    concept: Concept,
    scenes: Mapping[int, Sequence[Scene]],
    moments: Mapping[int, Float32[np.ndarray, "N F h w Z"]],
) -> dict[str, Any]:
    """A slot's pictures and prompts, as the concept's method has them."""
    shown = scenes[concept.number]
    weights = None
    if concept.method == "masks":
        weights = loss_weights(
            np.stack([held_out.subject_mask(scene)[None] for scene in shown]),
            frozen.model.family.downscale,
            flip=True,
            unmasked_weight=config.unmasked_weight,
            normalize=config.normalize_masked_area_loss,
        )
    prompts = held_out.training_prompts(concept, shown)
    count = len(prompts[0])
    starts = np.arange(len(shown), dtype=np.int32) * count
    sentences = [text for each in prompts for text in each]
    encoded = Encoded(
        moments=moments[concept.number],
        sizes=np.zeros((len(shown), 2, 6), np.int32),
        prompt_spans=np.stack([starts, np.full_like(starts, count)], axis=1),
        loss_weights=weights,
    )
    ids = frozen.tokenize([s.replace(templates.SLOT, PLACEHOLDER) for s in sentences])
    return {"buckets": [encoded], "prompts": ids}
