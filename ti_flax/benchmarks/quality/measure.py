"""How well Textual Inversion learns: many unseen concepts, judged by attribute.

`python -m ti_flax.benchmark quality` is its command line. All concepts are trained at
once, with the hyperparameters of configs/quickstart.yaml and what methods change.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ti_flax.benchmarks.quality import (
    agreement,
    base_model,
    held_out,
    judge,
    learn_many,
    methods,
    scores,
    summary,
    table,
)
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.benchmarks.quality.methods import Method
from ti_flax.benchmarks.quality.word_scores import (
    Word,
    make_pictures,
    score_drawn,
    score_pictures,
)
from ti_flax.config import run_config
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import world
from ti_flax.runtime import atomic, errors
from ti_flax.step.fixed_loss import FIXED_EXAMPLES
from ti_flax.training import starts

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
    base = base_model.load(config)
    concepts = held_out.concepts(keys.objects, keys.split)
    taught = held_out.learned(concepts, compared, keys.repeats)
    learned = learn_many.learn(configs, base, taught, keys.one_background, progress)
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
    used = {name: getattr(config, name) for name in (*_HYPERPARAMETERS, _HOLD)}
    content = {
        "settings": keys.model_dump(mode="json") | used,
        "seconds": {
            "training": round(trained - start),
            "pictures": round(time.perf_counter() - trained),
        },
        "training": _plain(learned.groups),
        "methods": {
            method.name: _plain(method) | _work(method, configs, taught, learned.steps)
            for method in compared
        },
        "judges": _plain(judges),
        **_plain(results),
        "words": _plain(scored),
    }
    atomic.write_json(keys.output, content, indent=1)
    print(table.table(results, judges, content["methods"]))
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


def _work(
    method: Method,
    configs: learn_many.Configs,
    taught: Sequence[Concept],
    steps: Sequence[int],
) -> dict[str, Any]:
    """The steps of each word of a method, and the examples of all of them.

    Those of a race count, and beside them what went through the model forward only.
    """
    own = [
        count
        for concept, count in zip(taught, steps, strict=True)
        if concept.method.name == method.name
    ]
    config, raced, tried = configs[method.name], 0, 0
    if config.num_starts > 1:
        raced, tried = config.num_starts * config.start_steps, starts.CANDIDATES
    return {
        "steps": own,
        "examples": config.examples_per_step * (sum(own) + len(own) * raced),
        "forward": len(own) * tried * max(FIXED_EXAMPLES, config.train_batch_size),
    }


def _words(
    keys: QualityKeys,
    concepts: Sequence[Concept],
    taught: Sequence[Concept],
    rows: Float32[np.ndarray, "S D"],
) -> list[Word]:
    """Initializers, learned words, and nouns that the base model was taught."""
    unused = np.zeros_like(rows[0])
    nouns = [*[*world.SPECIES.items()][: keys.species], *world.STYLES.items()]
    return [
        *(
            Word(methods.INITIALIZER, c.initializer, c.target, unused, c.background)
            for c in taught[: len(concepts)]
        ),
        *(
            Word(c.method.name, base_model.PLACEHOLDER, c.target, row, c.background)
            for c, row in zip(taught, rows, strict=True)
        ),
        *(
            Word(methods.NOUN, name, target, unused, background)
            for (name, target), background in zip(
                nouns, itertools.cycle(world.BACKGROUNDS), strict=False
            )
        ),
    ]


def _drawn(
    keys: QualityKeys, words: Sequence[Word], group: str, name: str
) -> list[scores.Score]:
    """What is read off drawings of a group's targets, as a group of that name."""
    return score_drawn(keys, [word for word in words if word.group == group], name)


def _plain(tree: Any) -> Any:
    """Named tuples as dictionaries, at any depth, so that JSON keeps their names."""

    def is_named(node: Any) -> bool:
        return hasattr(node, "_asdict")

    return jax.tree.map(
        lambda node: node._asdict() if is_named(node) else node, tree, is_leaf=is_named
    )
