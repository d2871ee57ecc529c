"""How well Textual Inversion learns: many unseen concepts, judged by attribute.

`python -m ti_flax.benchmark quality` is its command line. All concepts are trained at
once, with the hyperparameters of configs/quickstart.yaml.
"""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ti_flax.benchmarks.quality import base_model, held_out, judge, learn_many, scores
from ti_flax.benchmarks.quality.held_out import Concept
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.benchmarks.quality.word_scores import Word, score_words
from ti_flax.config import run_config
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.quickstart import settings
from ti_flax.quickstart.critters import world
from ti_flax.runtime import atomic

_log = logging.getLogger(__name__)

_HYPERPARAMETERS = (
    *("train_batch_size", "max_train_steps", "learning_rate", "lr_scheduler", "seed"),
    *("unmasked_weight", "unmasked_probability"),
    *StoppingKeys.model_fields,
)
_HOLD = "hold_row_norm"  # as configs/quickstart.yaml has it
_JUDGED_DRAWINGS = 1000


def measure(keys: QualityKeys, progress: bool = True) -> dict[str, Any]:
    """Trains, generates and judges; prints a table and writes the numbers as JSON.

    Returns what it writes, which, apart from `seconds`, the same keys give again on the
    same machine.

    Raises:
        UserError: what to mend, in one line.
    """
    start = time.perf_counter()
    config = _configuration(keys)
    base = base_model.load(config)
    concepts = held_out.concepts(keys.objects)
    learned = held_out.learned(concepts, keys.methods, keys.repeats)
    rows, steps = learn_many.learn(config, base, learned, keys.one_background, progress)
    trained = time.perf_counter()
    words = _words(concepts, learned, rows, keys.species)
    scored = score_words(keys, base, words, progress)
    own = judge.own_accuracy(_JUDGED_DRAWINGS, keys.seed)
    summary = scores.summarise(scored, keys.seed)
    used = {name: getattr(config, name) for name in (*_HYPERPARAMETERS, _HOLD)}
    content = {
        "settings": keys.model_dump(mode="json") | used,
        "seconds": {
            "training": round(trained - start),
            "pictures": round(time.perf_counter() - trained),
        },
        "judge": own,
        "steps": steps,
        **_plain(summary),
        "words": _plain(scored),
    }
    atomic.write_json(keys.output, content, indent=1)
    print(scores.table(summary, own))
    if keys.stop != "none":
        print(
            f"stopped after {np.mean(steps):.0f} steps in the mean, "
            f"{min(steps)} to {max(steps)} of {config.max_train_steps}"
        )
    _log.info("wrote %s", keys.output)
    return content


def _configuration(keys: QualityKeys) -> run_config.Config:
    given = {name: getattr(keys, name) for name in _HYPERPARAMETERS}
    given["pretrained_model_name_or_path"] = keys.model
    return settings.load_config(
        [f"--{name}={value}" for name, value in given.items() if value is not None]
    )


def _words(
    concepts: Sequence[Concept],
    learned: Sequence[Concept],
    rows: Float32[np.ndarray, "S D"],
    num_species: int,
) -> list[Word]:
    """Initializers, learned words, and nouns that the base model was taught."""
    unused = np.zeros_like(rows[0])
    nouns = [*[*world.SPECIES.items()][:num_species], *world.STYLES.items()]
    return [
        *(
            Word("initializer", c.initializer, c.target, unused, c.background)
            for c in learned[: len(concepts)]
        ),
        *(
            Word(c.method, base_model.PLACEHOLDER, c.target, row, c.background)
            for c, row in zip(learned, rows, strict=True)
        ),
        *(
            Word("noun", name, target, unused, background)
            for (name, target), background in zip(
                nouns, itertools.cycle(world.BACKGROUNDS), strict=False
            )
        ),
    ]


def _plain(tree: Any) -> Any:
    """Named tuples as dictionaries, at any depth, so that JSON keeps their names."""

    def is_named(node: Any) -> bool:
        return hasattr(node, "_asdict")

    return jax.tree.map(
        lambda node: node._asdict() if is_named(node) else node, tree, is_leaf=is_named
    )
