"""Many concepts learned in one run, each in a slot of the train step."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ti_flax.benchmarks.quality import held_out, methods, races
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.config import run_config
from ti_flax.data.masks import loss_weights
from ti_flax.quickstart.critters import drawing
from ti_flax.quickstart.critters.drawing import Scene
from ti_flax.runtime import sharding
from ti_flax.runtime.progress import Bar
from ti_flax.step import dispatch, stopping
from ti_flax.step.remat import most_slots
from ti_flax.step.slots import Encoded, Slot, stack
from ti_flax.step.state import Metrics, State, init_state
from ti_flax.step.train_step import StepRecipe
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

Configs = Mapping[str, run_config.Config]  # by the name of the method

_STEPS_A_DISPATCH = 10
_MOST_SLOTS = 64  # of 8 examples, about 5 GB on a CPU
_ENCODED_AT_ONCE = 10


class Group(NamedTuple):
    """Methods that were trained side by side, and how long that took.

    The seconds have the compilation of their step in them.
    """

    methods: list[str]
    seconds: float


class Learned(NamedTuple):
    """What concepts became: a row each, after so many steps."""

    rows: Float32[np.ndarray, "S D"]
    steps: list[int]
    groups: list[Group]


def learn(
    configs: Configs,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    one_background: bool,
    progress: bool,
) -> Learned:
    """Learns each concept by its method, the methods of one compiled step together.

    Raises `UserError` for a method that does not suit the model.
    """
    plans = [
        _plan(names, configs, frozen, concepts) for names in methods.together(configs)
    ]
    slots = _slots(configs, frozen, concepts, one_background)
    rows, steps, groups = [*slots], [0] * len(slots), []
    for plan in plans:
        start = time.perf_counter()
        for bank, state in _train(plan, configs, frozen, concepts, slots, progress):
            kept = {keep: stopping.kept(state, keep)[0] for keep in ("last", "best")}
            for place, i in enumerate(bank):
                keep = configs[concepts[i].method.name].keep
                rows[i] = kept[keep][frozen.encoder.name][place, 0]
                steps[i] = int(state.step[place])
        groups.append(Group(plan.methods, round(time.perf_counter() - start, 1)))
    return Learned(np.stack(rows), steps, groups)


class _Plan(NamedTuple):
    """Methods of one compiled step, and the numbers of the slots of each bank."""

    methods: list[str]
    banks: list[list[int]]
    recipe: StepRecipe
    races: bool


def _plan(
    names: list[str],
    configs: Configs,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
) -> _Plan:
    """As few banks as memory allows, and as large as each other.

    The last concept is learned again where one is missing.
    """
    config, family = configs[names[0]], frozen.model.family
    own = [i for i, each in enumerate(concepts) if each.method.name in names]
    # The methods of a concept side by side, whatever bank it comes into.
    own.sort(key=lambda i: concepts[i].number)
    latents = family.latent_side(drawing.SIDE) ** 2
    batch = config.train_batch_size
    most = most_slots(family, latents, batch, frozen.mesh, _MOST_SLOTS)
    count = -(-len(own) // most)
    size = -(-len(own) // count)
    own += own[-1:] * (count * size - len(own))
    banks = [own[start : start + size] for start in range(0, len(own), size)]
    recipe = make_recipe(config, family, latents, frozen.mesh, size)
    return _Plan(names, banks, recipe, config.num_starts > 1)


def _train(
    plan: _Plan,
    configs: Configs,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    slots: Sequence[Slot],
    progress: bool,
) -> Iterator[tuple[list[int], State]]:
    """The numbers of those who share a bank, and its state after their last steps."""
    recipe = plan.recipe
    train_steps = dispatch.compile_train_steps(recipe)
    for numbers in plan.banks:
        own = [slots[i] for i in numbers]
        with Bar(desc="training", unit="step", disable=not progress) as bar:

            def train(own: Sequence[Slot], bar: Bar = bar) -> State:
                return _take_steps(train_steps, recipe, own, frozen, bar)

            if plan.races:
                together = [concepts[i] for i in numbers]
                own = races.with_best_starts(
                    configs, together, own, frozen, recipe, train
                )
            yield numbers, train(own)


def _take_steps(
    train_steps: Callable[..., tuple[State, Metrics]],
    recipe: StepRecipe,
    slots: Sequence[Slot],
    frozen: LoadedModel,
    bar: Bar,
) -> State:
    """The state of concepts side by side after the steps that they have."""
    total = max(slot.max_train_steps for slot in slots)
    rows, bank = stack(slots)
    state = init_state(rows, recipe.optimizer, recipe.window)
    state, bank = jax.device_put((state, bank), sharding.replicated(frozen.mesh))
    for done in range(0, total, _STEPS_A_DISPATCH):
        num_steps = min(_STEPS_A_DISPATCH, total - done)
        state, metrics = train_steps(state, frozen.params, bank, num_steps)
        bar.update(num_steps)
        if not np.asarray(metrics.running)[num_steps - 1].any():
            break
    return state


def _slots(
    configs: Configs,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    one_background: bool,
) -> list[Slot]:
    """Each concept's pictures and prompts, and the row that it starts from."""
    [seed] = {config.seed for config in configs.values()}
    scenes = {
        concept.number: held_out.training_scenes(concept, seed, one_background)
        for concept in concepts
    }
    moments = _encode(frozen, scenes)
    tokenizer, table, name = frozen.tokenizer(), frozen.table(), frozen.encoder.name
    norms = vocabulary_norms(table)
    keys = jax.random.split(jax.random.key(seed), max(scenes) + 1)
    slots = []
    for concept in concepts:
        config, shown = configs[concept.method.name], scenes[concept.number]
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
                rows={name: initial_rows(table, word, 1, jitter, seed)},
                max_train_steps=config.max_train_steps,
                learning_rates=learning_rates(config),
                norms={name: held_norm(config, *norms)},
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
    if concept.method.teaching != "masks":
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
