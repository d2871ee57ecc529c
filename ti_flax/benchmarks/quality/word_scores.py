"""Pictures of many words, and the judge's verdict on each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from ti_flax.benchmarks.quality import held_out, judge, scores
from ti_flax.benchmarks.quality.base_model import Frozen
from ti_flax.benchmarks.quality.keys import QualityKeys
from ti_flax.diffusion import scheduler_config
from ti_flax.generation import sampling
from ti_flax.quickstart.critters import drawing
from ti_flax.text import templates

_PICTURES_AT_ONCE = 24


class Word(NamedTuple):
    """A word to make pictures of, what it should look like, and its row.

    The row is what the placeholder stands for; other words are in the vocabulary.
    """

    group: str
    name: str
    target: drawing.Look | drawing.Style
    row: Float32[np.ndarray, "D"]


def score_words(
    keys: QualityKeys, frozen: Frozen, words: Sequence[Word], progress: bool
) -> list[scores.Score]:
    """Shares of `num_images` pictures of each word that are right."""
    count = keys.num_images
    wanted = sampling.Wanted(
        prompts=np.arange(len(words) * count),
        # The same noise for every word: differences are the words' own.
        seeds=np.tile(np.arange(count, dtype=np.uint32) + keys.seed, len(words)),
        contexts=np.concatenate([_contexts(count, frozen, word) for word in words]),
        negative=frozen.encode_prompts([""], words[0].row)[0],
    )
    found = judge.read_attributes(_generate(keys, frozen, wanted, progress))
    return [
        score(word, {n: f[i * count : (i + 1) * count] for n, f in found.items()})
        for i, word in enumerate(words)
    ]


def score(word: Word, found: dict[str, np.ndarray]) -> scores.Score:
    """How often the attributes that were found are those of the word and context."""
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
    return scores.Score(word.group, learnable_property, word.name, accuracy)


def _contexts(count: int, frozen: Frozen, word: Word) -> Float32[np.ndarray, "N L D"]:
    asked = held_out.contexts(held_out.property_of(word.target), count)
    prompts = [sentence.replace(templates.SLOT, word.name) for sentence, _ in asked]
    return frozen.encode_prompts(prompts, word.row)


def _generate(
    keys: QualityKeys, frozen: Frozen, wanted: sampling.Wanted, progress: bool
) -> UInt8[np.ndarray, "N H W 3"]:
    model = frozen.model
    side = drawing.SIDE // model.vae.config.downscale
    recipe = sampling.Recipe(
        unet=model.unet,
        vae=model.vae,
        sampler=scheduler_config.make_sampler(
            model.scheduler, scheduler_config.find_name(model.scheduler), keys.steps
        ),
        guidance_scale=keys.guidance_scale,
        latent_shape=(side, side, model.unet.config.in_channels),
        mesh=frozen.mesh,
    )
    devices = frozen.mesh.size
    at_once = devices * -(-_PICTURES_AT_ONCE // devices)
    made = []
    with tqdm(
        total=len(wanted.seeds), desc="pictures", unit="picture", disable=not progress
    ) as bar:
        for batch in sampling.make_pictures(frozen.params, wanted, recipe, at_once):
            made.append(batch)
            bar.update(len(batch))
    return np.concatenate(made)
