"""Many concepts learned in one run, each in a slot of the train step."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ti_flax.benchmarks.quality import held_out
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config import run_config
from ti_flax.data.masks import loss_weights
from ti_flax.quickstart.critters import drawing
from ti_flax.quickstart.critters.drawing import Scene
from ti_flax.runtime import sharding
from ti_flax.runtime.progress import Bar
from ti_flax.step import dispatch, stopping
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import init_state
from ti_flax.text import templates
from ti_flax.text.initial_rows import (
    initial_rows,
    initializer_ids,
    vocabulary_norms,
)
from ti_flax.training.recipe import learning_rates, make_recipe
from ti_flax.training.resident import (
    encode_pictures,
    held_norm,
    make_encode,
    stop_rule,
)

_STEPS_A_DISPATCH = 10
_ENCODED_AT_ONCE = 10


def learn(
    config: run_config.Config,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    one_background: bool,
    progress: bool,
) -> tuple[Float32[np.ndarray, "S D"], list[int]]:
    """The learned row of each concept, and after how many steps it ended.

    `config` has the hyperparameters of all.
    """
    model = frozen.model
    side = model.family.latent_side(drawing.SIDE)
    recipe = make_recipe(config, model.family, side**2, frozen.mesh)
    rows, bank = stack(_slots(config, frozen, concepts, one_background))
    state = init_state(rows, recipe.optimizer, recipe.window)
    state, bank = jax.device_put((state, bank), sharding.replicated(frozen.mesh))
    train_steps = dispatch.compile_train_steps(recipe)
    with Bar(
        total=config.max_train_steps, desc="training", unit="step", disable=not progress
    ) as bar:
        for done in range(0, config.max_train_steps, _STEPS_A_DISPATCH):
            num_steps = min(_STEPS_A_DISPATCH, config.max_train_steps - done)
            state, metrics = train_steps(state, frozen.params, bank, num_steps)
            running = np.asarray(metrics.running)[num_steps - 1]
            bar.update(num_steps)
            if not running.any():
                break
    rows, _ = stopping.kept(state, config.keep)
    return rows[frozen.encoder.name][:, 0], np.asarray(state.step).tolist()


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
    slots = []
    for concept in concepts:
        shown = scenes[concept.number]
        prompts = held_out.training_prompts(concept, shown)
        word = initializer_ids(tokenizer, concept.initializer)
        jitter = config.initializer_jitter
        slots.append(
            Slot(
                seed_key=keys[concept.number],
                buckets=[
                    Encoded(
                        moments=moments[concept.number],
                        sizes=np.zeros((len(shown), 2, 6), np.int32),
                        prompt_spans=_spans(prompts),
                        loss_weights=_loss_weights(config, frozen, concept, shown),
                    )
                ],
                prompts=_training_ids(frozen, prompts),
                rows={name: initial_rows(table, word, 1, jitter, config.seed)},
                max_train_steps=config.max_train_steps,
                learning_rates=learning_rates(config),
                norms={name: norm},
                unmasked_probability=config.unmasked_probability,
                rule=stop_rule(config),
            )
        )
    return slots


def _encode(
    frozen: LoadedModel, scenes: Mapping[int, Sequence[Scene]]
) -> dict[int, Float32[np.ndarray, "N F h w Z"]]:
    """Moments of the pictures of each number."""
    pictures = [drawing.draw(scene) for each in scenes.values() for scene in each]
    family = frozen.model.family
    moments = encode_pictures(
        make_encode(family, frozen.params[family.autoencoder.name]),
        pictures,
        flip=True,
        batch_size=_ENCODED_AT_ONCE,
        progress=False,
    )
    return dict(zip(scenes, np.split(moments, len(scenes)), strict=True))


def _loss_weights(
    config: run_config.Config,
    frozen: LoadedModel,
    concept: Concept,
    scenes: Sequence[Scene],
) -> Float32[np.ndarray, "N F h w"] | None:
    """Of masks, where the concept is learned with them."""
    if concept.method != "masks":
        return None
    return loss_weights(
        np.stack([held_out.subject_mask(scene)[None] for scene in scenes]),
        frozen.model.family.downscale,
        flip=True,
        unmasked_weight=config.unmasked_weight,
        normalize=config.normalize_masked_area_loss,
    )


def _spans(prompts: Sequence[Sequence[str]]) -> Int32[np.ndarray, "N 2"]:
    """The first prompt of each picture, and how many it has."""
    counts = np.array([*map(len, prompts)], np.int32)
    return np.stack([np.cumsum(counts, dtype=np.int32) - counts, counts], axis=1)


def _training_ids(
    frozen: LoadedModel, prompts: Sequence[Sequence[str]]
) -> dict[str, Int32[np.ndarray, "P L"]]:
    sentences = [sentence for each in prompts for sentence in each]
    return frozen.tokenize([s.replace(templates.SLOT, PLACEHOLDER) for s in sentences])
