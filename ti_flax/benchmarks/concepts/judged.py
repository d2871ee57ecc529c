"""How well the words of the queue and those that were learned alone do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ti_flax.benchmarks.concepts import drawn
from ti_flax.benchmarks.concepts.keys import ConceptsKeys
from ti_flax.benchmarks.concepts.timed import ALONE_NAME, QUEUE_NAME
from ti_flax.benchmarks.quality import base_model, scores
from ti_flax.benchmarks.quality.keys import JudgingKeys, QualityKeys
from ti_flax.benchmarks.quality.scores import Score
from ti_flax.benchmarks.quality.word_scores import Word, score_words
from ti_flax.config.run_config import Config
from ti_flax.formats.find import load_embedding


def judge(keys: ConceptsKeys, config: Config, progress: bool) -> list[Score]:
    """The scores of the queue's words, then of those alone, each in their order.

    `config` is that of any of them.
    """
    base = base_model.load(config)
    concepts = drawn.concepts(keys.concepts)
    wanted = [(QUEUE_NAME, name) for name in concepts]
    wanted += [(ALONE_NAME, name) for name in [*concepts][: keys.alone]]
    words = [
        Word(
            group,
            base_model.PLACEHOLDER,
            concepts[name].target,
            _row(keys.output_dir / group / name, base.encoder.name),
            concepts[name].background,
        )
        for group, name in wanted
    ]
    how = {key: getattr(keys, key) for key in (*JudgingKeys.model_fields, "seed")}
    scored = score_words(QualityKeys(**how), base, words, progress)
    return [
        score._replace(word=name)
        for score, (_, name) in zip(scored, wanted, strict=True)
    ]


def _row(folder: Path, encoder: str):
    [row] = load_embedding(folder).rows[encoder]
    return row


def accuracy(scored: Sequence[Score], seed: int) -> dict[str, Any]:
    """Objects and styles -> attribute -> share that is right, with its interval.

    Of the words of the queue; where there are some alone, of them, and the mean over
    them of what each has more in the queue. `appearance` is the attributes' mean.
    """
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(score.learnable_property for score in scored):
        own = [score for score in scored if score.learnable_property == kind]
        queue = [score for score in own if score.group == QUEUE_NAME]
        alone = [score for score in own if score.group == ALONE_NAME]
        found[kind] = {
            "words": {QUEUE_NAME: len(queue), ALONE_NAME: len(alone)},
            **{
                name: _estimates(name, queue, alone, seed)
                for name in ("appearance", *queue[0].accuracy)
            },
        }
    return found


def _estimates(
    name: str, queue: Sequence[Score], alone: Sequence[Score], seed: int
) -> dict[str, dict[str, float]]:
    def value(score: Score) -> float:
        return score.appearance if name == "appearance" else score.accuracy[name]

    values = {score.word: value(score) for score in queue}
    found = {QUEUE_NAME: scores.mean_over_words([*values.values()], seed)}
    if alone:
        theirs = [value(score) for score in alone]
        same = [values[score.word] for score in alone]
        found[ALONE_NAME] = scores.mean_over_words(theirs, seed)
        found["difference"] = scores.mean_of_differences(same, theirs, seed)
    return {group: estimate._asdict() for group, estimate in found.items()}
