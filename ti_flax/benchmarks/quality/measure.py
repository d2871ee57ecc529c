"""How well Textual Inversion learns: many unseen concepts, judged by attribute.

`python -m ti_flax.benchmark quality` is its command line. All concepts are trained at
once, with the hyperparameters of configs/quickstart.yaml and what methods change.
"""

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from ti_flax.benchmarks.quality import (
    agreement,
    base_model,
    cost,
    curve,
    held_out,
    judge,
    learn_many,
    methods,
    scores,
    summary,
    table,
)
from ti_flax.benchmarks.quality.base_model import LoadedModel
from ti_flax.benchmarks.quality.curve import Curve
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.benchmarks.quality.learn_many import Learned
from ti_flax.benchmarks.quality.methods import Method
from ti_flax.benchmarks.quality.word_scores import (
    Word,
    make_pictures,
    score_drawn,
    score_pictures,
    score_words,
)
from ti_flax.config import run_config
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import world
from ti_flax.runtime import atomic, errors

_log = logging.getLogger(__name__)

_HYPERPARAMETERS = (
    *("train_batch_size", "max_train_steps", "learning_rate", "lr_scheduler", "seed"),
    *("unmasked_weight", "unmasked_probability"),
    *StoppingKeys.model_fields,
)
_HOLD = "hold_row_norm"  # as configs/quickstart.yaml has it


def measure(keys: QualityKeys, progress: bool = True) -> dict[str, Any]:
    """Trains, generates and judges; prints a table and writes the numbers as JSON.

    Returns what it writes, which, apart from seconds, the same keys give again on the
    same machine.

    Raises:
        UserError: what to mend, in one line.
    """
    start = time.perf_counter()
    compared = [*map(methods.read, keys.methods)]
    configs = {method.name: _configuration(keys, method) for method in compared}
    config = configs[compared[0].name]
    _check_counts(keys, configs)
    base = base_model.load(config)
    concepts = held_out.concepts(keys.objects, keys.split)
    taught = held_out.learned(concepts, compared, keys.repeats)
    learned = learn_many.learn(
        configs, base, taught, keys.one_background, progress, keys.judge_after
    )
    trained = time.perf_counter()
    words = _words(keys, concepts, taught, learned.rows)
    pictures = make_pictures(keys, base, words, progress)
    found = judge.read_attributes(pictures)
    scored = [
        *score_pictures(keys, words, found),
        *_drawn(keys, words, methods.INITIALIZER, methods.DRAWN),
        *_drawn(keys, words, methods.NOUN, methods.DRAWN_NOUN),
    ]
    judges = agreement.agreements(keys, words, pictures, found)
    results = summary.summarise(scored, keys.seed)
    early, curves = _curves(keys, configs, base, taught, learned, scored, progress)
    used = {name: getattr(config, name) for name in (*_HYPERPARAMETERS, _HOLD)}
    content = {
        "settings": keys.model_dump(mode="json") | used,
        "seconds": {
            "training": round(trained - start),
            "pictures": round(time.perf_counter() - trained),
        },
        "training": _plain(learned.groups),
        "methods": {
            method.name: _plain(method)
            | cost.of_all(configs[method.name], _steps(method.name, taught, learned))
            for method in compared
        },
        "judges": _plain(judges),
        **_plain(results),
        "curves": _plain(curves),
        "words": _plain([*scored, *early]),
    }
    atomic.write_json(keys.output, content, indent=1)
    print(table.table(results, judges, content["methods"], curves))
    for group in learned.groups:
        print(f"{group.seconds:.0f} s: training of {', '.join(group.methods)}")
    _log.info("wrote %s", keys.output)
    return content


def _configuration(keys: QualityKeys, method: Method) -> run_config.Config:
    """The settings of a method. Raises `UserError` for keys that do not fit."""
    given = {name: getattr(keys, name) for name in _HYPERPARAMETERS}
    given["pretrained_model_name_or_path"] = keys.model
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return settings.load_config(
            [f"--{name}={value}" for name, value in {**given, **method.keys}.items()]
        )
    except errors.UserError as error:
        raise errors.UserError(f"method {method.name}: {error}") from error


def _check_counts(keys: QualityKeys, configs: learn_many.Configs) -> None:
    """Raises `UserError` where no method has so many steps."""
    longest = max(config.max_train_steps for config in configs.values())
    if keys.judge_after and keys.judge_after[-1] >= longest:
        raise errors.UserError(
            f"judge_after: expected fewer steps than the {longest} of max_train_steps, "
            f"after which words are judged anyway, found {keys.judge_after[-1]}"
        )


def _steps(name: str, taught: Sequence[Concept], learned: Learned) -> list[int]:
    """Of each word of a method."""
    each = zip(taught, learned.steps, strict=True)
    return [steps for concept, steps in each if concept.method.name == name]


def _curves(
    keys: QualityKeys,
    configs: learn_many.Configs,
    base: LoadedModel,
    taught: Sequence[Concept],
    learned: Learned,
    scored: Sequence[scores.Score],
    progress: bool,
) -> tuple[list[scores.Score], dict[str, dict[str, Curve]]]:
    """Scores of words after `judge_after` steps, and with the last ones their curves.

    None are judged after as many steps as a method has in all.
    """
    if not keys.judge_after:
        return [], {}
    words = [
        _learned(concept, row, curve.group_after(concept.method.name, count))
        for count, rows in learned.early.items()
        for concept, row in zip(taught, rows, strict=True)
        if count < configs[concept.method.name].max_train_steps
    ]
    early = score_words(keys, base, words, progress)
    groups = {name: group for group in learned.groups for name in group.methods}
    costs = {}
    for name, config in configs.items():
        steps, end = _steps(name, taught, learned), config.max_train_steps
        counts = [*(count for count in keys.judge_after if count < end), end]
        costs[name] = [cost.of_word(config, steps, n, groups[name]) for n in counts]
    return early, curve.curves([*scored, *early], costs, keys.seed)


def _words(
    keys: QualityKeys,
    concepts: Sequence[Concept],
    taught: Sequence[Concept],
    rows: Float32[np.ndarray, "S D"],
) -> list[Word]:
    """Initializers, learned words, their targets in words, and nouns of the model."""
    unused = np.zeros_like(rows[0])
    own = taught[: len(concepts)]

    def known(group: str, name: str, concept: Concept) -> Word:
        return Word(group, name, concept.target, unused, concept.background)

    nouns = [*[*world.SPECIES.items()][: keys.species], *world.STYLES.items()]
    return [
        *(known(methods.INITIALIZER, c.initializer, c) for c in own),
        *(
            _learned(concept, row, concept.method.name)
            for concept, row in zip(taught, rows, strict=True)
        ),
        *(known(methods.DESCRIBED, held_out.described(c.target), c) for c in own),
        *(
            Word(methods.NOUN, name, target, unused, background)
            for (name, target), background in zip(
                nouns, itertools.cycle(world.BACKGROUNDS), strict=False
            )
        ),
    ]


def _learned(concept: Concept, row: Float32[np.ndarray, "D"], group: str) -> Word:
    name, background = base_model.PLACEHOLDER, concept.background
    return Word(group, name, concept.target, row, background)


def _drawn(
    keys: QualityKeys, words: Sequence[Word], group: str, name: str
) -> list[scores.Score]:
    """What is read off drawings of a group's targets, as a group of that name."""
    return score_drawn(keys, [word for word in words if word.group == group], name)


def _plain(tree: Any) -> Any:
    """Named tuples as dictionaries, at any depth, so that JSON keeps their names."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [*map(_plain, tree)] if isinstance(tree, list | tuple) else tree
