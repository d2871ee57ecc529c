"""Pictures of many words, and the judge's verdict on each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

from ti_flax.benchmarks.quality import held_out, judge, scores
from ti_flax.benchmarks.quality.base_model import LoadedModel
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.diffusion import scheduler_config
from ti_flax.generation import sampling
from ti_flax.models.family import Conditioning
from ti_flax.quickstart.critters import drawing, world
from ti_flax.runtime.progress import Bar
from ti_flax.text import templates

_PICTURES_AT_ONCE = 24


class Word(NamedTuple):
    """A word to make pictures of, what it should look like, and its row.

    The row is what the placeholder stands for; other words are in the vocabulary.
    `background` is that of the pictures that a concept was learned from, or one of all.
    """

    group: str
    name: str
    target: drawing.Look | drawing.Style
    row: Float32[np.ndarray, "D"]
    background: str


def score_words(
    keys: QualityKeys, frozen: LoadedModel, words: Sequence[Word], progress: bool
) -> list[scores.Score]:
    """Shares of `num_images` pictures of each word that are right."""
    pictures = make_pictures(keys, frozen, words, progress)
    return score_pictures(keys, words, judge.read_attributes(pictures))


def make_pictures(
    keys: QualityKeys, frozen: LoadedModel, words: Sequence[Word], progress: bool
) -> UInt8[np.ndarray, "N H W 3"]:
    """`num_images` pictures of each word, word after word.

    With `one_background` each is followed by as many of sentences that ask for none.
    """
    count, kinds = keys.num_images, 1 + keys.one_background
    # The same noise for every word: differences are the words' own.
    seeds = np.tile(np.arange(count, dtype=np.uint32) + keys.seed, len(words) * kinds)
    told = _told(count, frozen, words, keys.one_background)
    wanted = sampling.Wanted(prompts=np.arange(len(seeds)), seeds=seeds, told=told)
    return _generate(keys, frozen, wanted, progress)


def score_pictures(
    keys: QualityKeys,
    words: Sequence[Word],
    found: Mapping[str, Int[np.ndarray, "N"]],
) -> list[scores.Score]:
    """The words' scores from what was read off the pictures of `make_pictures`."""
    count, kinds = keys.num_images, 1 + keys.one_background
    scored = []
    for index, word in enumerate(words):
        start = index * kinds * count
        asked = {name: values[start : start + count] for name, values in found.items()}
        free = found["background"][start + count : start + kinds * count]
        scored.append(score(word, asked, free if keys.one_background else None))
    return scored


def score_drawn(
    keys: QualityKeys, words: Sequence[Word], group: str
) -> list[scores.Score]:
    """As `score_words`, of drawn pictures of the words' targets: none does better."""
    count = keys.num_images
    scenes = [
        scene
        for word in words
        for scene in held_out.judged_scenes(word.target, count, keys.seed)
    ]
    found = judge.read_attributes(judge.draw_all(scenes))
    plain = keys.model_copy(update={"one_background": False})
    renamed = [word._replace(group=group) for word in words]
    return score_pictures(plain, renamed, found)


def score(
    word: Word, found: dict[str, np.ndarray], free: np.ndarray | None = None
) -> scores.Score:
    """How often the attributes that were found are those of the word and context.

    `free`: backgrounds that were found where none was asked for, if that was tried.
    """
    learnable_property = held_out.property_of(word.target)
    backgrounds = held_out.contexts(learnable_property, len(found["background"]))
    true = {
        **{name: [value] for name, value in word.target._asdict().items()},
        "background": [background for _, background in backgrounds],
    }
    accuracy = {
        name: float(
            np.mean(found[name] == [*map(judge.ATTRIBUTES[name].index, values)])
        )
        for name, values in true.items()
    }
    if free is not None:
        own = judge.ATTRIBUTES["background"].index(word.background)
        accuracy[scores.UNASKED] = float(np.mean(free == own))
    tint = (
        word.target.tint
        if isinstance(word.target, drawing.Style)
        else world.NO_STYLE.tint
    )
    return scores.Score(word.group, learnable_property, word.name, accuracy, tint)


def _told(
    count: int, frozen: LoadedModel, words: Sequence[Word], unasked: bool
) -> Conditioning:
    """What is told of `count` prompts of each word, and last of the negative one.

    `unasked`: and after them of `count` that ask for no background.
    """
    told = []
    for word in words:
        learnable_property = held_out.property_of(word.target)
        asked = [each for each, _ in held_out.contexts(learnable_property, count)]
        if unasked:
            asked += held_out.sentences(learnable_property, count)
        prompts = [sentence.replace(templates.SLOT, word.name) for sentence in asked]
        told.append(frozen.encode_prompts(prompts, word.row, drawing.SIDE))
    told.append(frozen.encode_prompts([""], words[0].row, drawing.SIDE))
    return tuple(map(np.concatenate, zip(*told, strict=True)))


def _generate(
    keys: QualityKeys, frozen: LoadedModel, wanted: sampling.Wanted, progress: bool
) -> UInt8[np.ndarray, "N H W 3"]:
    model = frozen.model
    side = model.family.latent_side(drawing.SIDE)
    recipe = sampling.SamplingRecipe(
        family=model.family,
        sampler=scheduler_config.make_sampler(
            model.scheduler, scheduler_config.find_name(model.scheduler), keys.steps
        ),
        guidance_scale=keys.guidance_scale,
        latent_shape=(side, side, model.family.latent_channels),
        mesh=frozen.mesh,
    )
    devices = frozen.mesh.size
    at_once = devices * -(-_PICTURES_AT_ONCE // devices)
    made = []
    with Bar(
        total=len(wanted.seeds), desc="pictures", unit="picture", disable=not progress
    ) as bar:
        for batch in sampling.make_images(frozen.params, wanted, recipe, at_once):
            made.append(batch)
            bar.update(len(batch))
    return np.concatenate(made)
