"""Races of starts of many concepts at once, each in its slot."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ti_flax.benchmarks.quality.base_model import LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config.run_config import Config
from ti_flax.quickstart.critters import world
from ti_flax.runtime import sharding
from ti_flax.step.fixed_loss import compile_fixed_loss
from ti_flax.step.slots import Slot, stack
from ti_flax.step.state import State
from ti_flax.step.train_step import StepRecipe
from ti_flax.text.initial_rows import initial_rows, initializer_ids
from ti_flax.text.nearest_words import words_near
from ti_flax.training import starts
from ti_flax.training.inputs import Start

# Concepts to their state after the steps that they have.
Train = Callable[[Sequence[Slot]], State]
# Rows of concepts side by side to the fixed loss of each.
Losses = Callable[[Float[jax.Array, "S 1 D"]], list[float]]


def compile_losses(
    slots: Sequence[Slot], frozen: LoadedModel, recipe: StepRecipe
) -> Losses:
    """The fixed losses of concepts, compiled by those of the rows that they have."""
    name, fixed_loss = frozen.encoder.name, compile_fixed_loss(recipe)
    rows, bank = jax.device_put(stack(slots), sharding.replicated(frozen.mesh))

    def losses(rows: Float[jax.Array, "S 1 D"]) -> list[float]:
        return np.asarray(fixed_loss({name: rows}, frozen.params, bank).mean).tolist()

    losses(rows[name])
    return losses


def with_best_starts(
    configs: Mapping[str, Config],
    concepts: Sequence[Concept],
    slots: Sequence[Slot],
    frozen: LoadedModel,
    train: Train,
    losses: Losses,
) -> list[Slot]:
    """The concepts with the rows of the start that won each one's race."""
    name, table, tokenizer = frozen.encoder.name, frozen.table(), frozen.tokenizer()

    def rows(config: Config, start: Start) -> dict[str, np.ndarray]:
        ids, scale = initializer_ids(tokenizer, start.word), config.initializer_scale
        return {name: initial_rows(table, ids, 1, 0.0, start.seed, scale)}

    own = [
        configs[concept.method.name].model_copy(
            update={"initializer_token": concept.initializer}
        )
        for concept in concepts
    ]
    rows_of = [partial(rows, config) for config in own]
    near = [
        words_near(
            *(tokenizer, table, slot.rows[name][0], starts.CANDIDATES),
            without=_told_beforehand(concept),
        )
        for concept, slot in zip(concepts, slots, strict=True)
    ]
    tried = [
        losses(
            jnp.stack(
                [of(Start(w, 0))[name] for of, w in zip(rows_of, words, strict=True)]
            )
        )
        for words in zip(*near, strict=True)
    ]
    races = []
    for i, (config, slot) in enumerate(zip(own, slots, strict=True)):
        first = starts.starts_of(config, near[i], [each[i] for each in tried])
        races.append(starts.Race(config, first, slot, rows_of[i]))
    while any(running := [race.next() for race in races]):
        # Who has no start left takes no step.
        state = train(
            [
                one or slot._replace(max_train_steps=0)
                for one, slot in zip(running, slots, strict=True)
            ]
        )
        found = losses(state.rows[name])
        for race, one, loss in zip(races, running, found, strict=True):
            if one is not None:
                race.note(loss)
    return [
        slot._replace(rows=of(race.ranked()[0][0]))
        for of, slot, race in zip(rows_of, slots, races, strict=True)
    ]


def _told_beforehand(concept: Concept) -> list[str]:
    """The word that a concept starts from, and the one that the model knows it by."""
    nouns = {style: noun for noun, style in world.STYLES.items()}
    known = nouns.get(concept.target)
    return [concept.initializer, *([] if known is None else [known])]
