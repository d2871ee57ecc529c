"""Many concepts learned in one run, each in a slot of the train step."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32

from ti_flax.benchmarks.quality import held_out, methods, races
from ti_flax.benchmarks.quality.base_model import PLACEHOLDER, LoadedModel
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.benchmarks.quality.timed_steps import Clock, take_steps
from ti_flax.config import run_config
from ti_flax.data.masks import loss_weights
from ti_flax.quickstart.critters import drawing
from ti_flax.quickstart.critters.drawing import Scene
from ti_flax.runtime.progress import Bar
from ti_flax.step import dispatch, stopping
from ti_flax.step.remat import most_slots
from ti_flax.step.slots import Encoded, Slot
from ti_flax.step.state import State
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

_MOST_SLOTS = 64  # of 8 examples, about 5 GB on a CPU
_ENCODED_AT_ONCE = 10


class Group(NamedTuple):
    """Methods that were trained side by side, and how long that took.

    `seconds` have the compilation of their step in them. The others have not, and are
    of one word: those of a bank, divided by its slots. `step_seconds` are None where a
    run had one dispatch, which may have compiled.
    """

    methods: list[str]
    seconds: float
    step_seconds: float | None
    race_seconds: float


class Learned(NamedTuple):
    """What concepts became: a row each, after so many steps.

    `early` are the rows after fewer: those of a run whose `keep` chose then.
    """

    rows: Float32[np.ndarray, "S D"]
    steps: list[int]
    groups: list[Group]
    early: dict[int, Float32[np.ndarray, "S D"]]


def learn(
    configs: Configs,
    frozen: LoadedModel,
    concepts: Sequence[Concept],
    one_background: bool,
    progress: bool,
    judge_after: Sequence[int] = (),
) -> Learned:
    """Learns each concept by its method, the methods of one compiled step together.

    After each number of steps in `judge_after` the rows are kept, too.

    Raises `UserError` for a method that does not suit the model.
    """
    plans = [
        _plan(names, configs, frozen, concepts) for names in methods.together(configs)
    ]
    slots = _slots(configs, frozen, concepts, one_background)
    steps, groups, name = [0] * len(slots), [], frozen.encoder.name
    ends = np.array([*judge_after, np.inf])
    rows = np.zeros((len(ends), len(slots), frozen.encoder.width), np.float32)
    for plan in plans:
        start, clock = time.perf_counter(), Clock()
        for bank, state in _train(
            plan, configs, frozen, concepts, slots, progress, judge_after, clock
        ):
            kept = {keep: stopping.kept(state, keep)[0] for keep in ("last", "best")}
            for place, i in enumerate(bank):
                keep = configs[concepts[i].method.name].keep
                steps[i] = int(state.step[place])
                # Who has stopped stays as it is.
                rows[ends >= steps[i], i] = kept[keep][name][place, 0]
        seconds = round(time.perf_counter() - start, 1)
        groups.append(Group(plan.methods, seconds, *clock.of_a_word(plan.banks)))
    early = dict(zip(judge_after, rows, strict=False))
    return Learned(rows[-1], steps, groups, early)


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
    judge_after: Sequence[int],
    clock: Clock,
) -> Iterator[tuple[list[int], State]]:
    """The numbers of those who share a bank, and its state where it is judged.

    The last is after their last steps.
    """
    recipe = plan.recipe
    train_steps = dispatch.compile_train_steps(recipe)
    for numbers in plan.banks:
        own = [slots[i] for i in numbers]
        with Bar(desc="training", unit="step", disable=not progress) as bar:

            def train(own: Sequence[Slot], bar: Bar = bar) -> State:
                *_, (_, state) = take_steps(train_steps, recipe, own, frozen, bar)
                return state

            if plan.races:
                together = [concepts[i] for i in numbers]
                losses = races.compile_losses(own, frozen, recipe)
                train([slot._replace(max_train_steps=1) for slot in own])  # compiles
                start = time.perf_counter()
                own = races.with_best_starts(
                    configs, together, own, frozen, train, losses
                )
                clock.races += time.perf_counter() - start
            for end, state in take_steps(
                train_steps, recipe, own, frozen, bar, judge_after, clock
            ):
                if end in judge_after:
                    yield numbers, state
            yield numbers, state


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
        jitter, scale = config.initializer_jitter, config.initializer_scale
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
                rows={name: initial_rows(table, word, 1, jitter, seed, scale)},
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
