"""A run from keys to pictures; `python -m ti_flax.generate` is its command line."""

import functools
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from ti_flax.config import validation
from ti_flax.config.generate_keys import GenerateKeys
from ti_flax.config.signatures import GenerateSettings, with_keys_of
from ti_flax.diffusion import scheduler_config
from ti_flax.formats import find
from ti_flax.generation import png, sampling
from ti_flax.models import attention, base_model
from ti_flax.models.family import Conditioning, Family
from ti_flax.models.opening import Choices
from ti_flax.runtime import jax_settings, sharding
from ti_flax.runtime.errors import UserError
from ti_flax.runtime.progress import Bar
from ti_flax.text import known_words
from ti_flax.text.tokenizer import (
    PromptTokenizer,
    load_tokenizer,
    token_ids,
    vector_names,
)

if TYPE_CHECKING:
    import transformers

_log = logging.getLogger(__name__)

# What a learned word usually looks like.
_PLACEHOLDER = re.compile(r"<[^<>\s]+>")

# Learned words with their rows by text encoder, in the order of their ids.
Words = dict[str, dict[str, Float32[np.ndarray, "K _"]]]


@with_keys_of(GenerateKeys, GenerateSettings)
def generate_images(
    progress: bool = True, **settings: Unpack[GenerateSettings]
) -> list[Image.Image]:
    """Makes pictures, `num_images` of each prompt in turn.

    As in `generate_images(model="sd-1-5", embedding="cat.bin", prompt="a <cat>")`;
    `generate_keys` has all `keys`, which the command line has as flags. Image j of a
    prompt depends on the prompt and on seed + j: not on the other pictures, the batch
    size or the number of devices. Each has its parameters in `info`; with `output`
    they are also written as PNG files, with a grid.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(GenerateKeys, settings, "with --key value")
    return generate(checked, progress)


@jax_settings.fixed()
def generate(keys: GenerateKeys, progress: bool) -> list[Image.Image]:
    """`generate.generate_images` after its keys have been checked.

    Whatever else a user may have got wrong is found before weights are read.
    """
    # Of several processes, all make the pictures and one writes them.
    output = keys.output if jax.process_index() == 0 else None
    if output is not None:
        _make_folder(output)
    mesh = sharding.make_mesh()
    model = base_model.open_model(
        keys.model,
        keys.revision,
        keys.variant,
        base_model.denoiser_dtype(keys.mixed_precision),
        attention.make_plan(keys.attention, mesh),
        choices=Choices.of(keys),
    )
    family = model.family
    widths = {encoder.name: encoder.width for encoder in family.text_encoders}
    words = _load_words(keys.embedding, widths)
    ids = _token_ids([*keys.prompt, keys.negative_prompt], model, words)
    scheduler = keys.scheduler or scheduler_config.find_name(model.scheduler)
    latent_shape = _latent_shape(keys, family)
    recipe = sampling.SamplingRecipe(
        family=family,
        sampler=scheduler_config.make_sampler(model.scheduler, scheduler, keys.steps),
        guidance_scale=keys.guidance_scale,
        latent_shape=latent_shape,
        mesh=mesh,
    )
    makings = _makings(keys, recipe, scheduler, words)

    _log.info("reading %s", model.source.path)
    size = makings[0].height, makings[0].width
    wanted = sampling.Wanted(
        prompts=np.repeat(np.arange(len(keys.prompt)), keys.num_images),
        seeds=np.array([making.seed for making in makings], np.uint32),
        told=_encode(model, ids, words, size, mesh, not keys.negative_prompt),
    )
    params = {
        part.name: model.load(part.name, sharding.replicated(mesh))
        for part in (family.denoiser, family.autoencoder)
    }
    at_once = min(keys.batch_size or mesh.size, len(makings))
    batch_size = mesh.size * math.ceil(at_once / mesh.size)
    batches = sampling.make_images(params, wanted, recipe, batch_size)
    columns = keys.num_images if len(keys.prompt) > 1 else _side(len(makings))
    pixels = itertools.chain.from_iterable(batches)
    return _collect(pixels, makings, output, columns, progress)


def _collect(
    pixels: Iterator[UInt8[np.ndarray, "H W 3"]],
    makings: Sequence[png.Making],
    output: Path | None,
    columns: int,
    progress: bool,
) -> list[Image.Image]:
    """Writes each picture as it comes, and then a grid of them; returns them all."""
    images = []
    first = 0 if output is None else png.next_number(output)
    bar = Bar(pixels, "pictures", len(makings), unit="picture", disable=not progress)
    for picture, making in zip(bar, makings, strict=True):
        images.append(png.to_image(picture, making))
        if output is not None:
            number = first + len(images) - 1
            png.save(images[-1], output / f"{number:05d}.png")
    if output is not None and len(images) > 1:
        sheet = png.grid(images, columns)
        png.save(sheet, output / f"grid_{first:05d}.png")
    if output is not None:
        _log.info("wrote %s", output)
    return images


def _makings(
    keys: GenerateKeys, recipe: sampling.SamplingRecipe, scheduler: str, words: Words
) -> list[png.Making]:
    """How each picture will be made, `num_images` of each prompt in turn."""
    height, width = (side * recipe.family.downscale for side in recipe.latent_shape[:2])
    return [
        png.Making(
            prompt=prompt,
            negative_prompt=keys.negative_prompt,
            # After the largest seed comes 0.
            seed=(keys.seed + index) % 2**32,
            steps=keys.steps,
            scheduler=scheduler,
            guidance_scale=keys.guidance_scale,
            width=width,
            height=height,
            model=keys.model,
            words=_num_vectors(words),
        )
        for prompt in keys.prompt
        for index in range(keys.num_images)
    ]


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output: {output} cannot be a folder ({error.strerror}); choose another"
        ) from error


def _load_words(embeddings: Sequence[str], widths: Mapping[str, int]) -> Words:
    """Reads embedding files, or their folders, each given as FILE or WORD=FILE."""
    words: Words = {}
    files: dict[str, str] = {}
    for given in embeddings:
        name, file = _split_name(given)
        learned = find.load_for_model(
            Path(os.path.expanduser(file)), widths, "embedding", name or None
        )
        word = name or learned.token
        if word in words:
            raise UserError(
                f"embedding: {files[word]} and {file} both have the word {word!r}; "
                f"give one of them another name: --embedding 'NEW_NAME={file}'"
            )
        words[word], files[word] = learned.rows, file
    return words


def _split_name(given: str) -> tuple[str, str]:
    """Word and file of WORD=FILE; the word is empty where only a file is given."""
    if "=" not in given or Path(os.path.expanduser(given)).exists():
        return "", given
    name, _, file = given.partition("=")
    return name, file


def _num_vectors(words: Words) -> dict[str, int]:
    return {word: len(next(iter(rows.values()))) for word, rows in words.items()}


def _token_ids(
    prompts: Sequence[str], model: base_model.BaseModel, words: Words
) -> dict[str, Int32[np.ndarray, "P L"]]:
    """Token ids of prompts for each text encoder; the last is the negative one."""
    tokenizers = {}
    for encoder in model.family.text_encoders:
        tokenizer = load_tokenizer(model.tokenizer(encoder), encoder.pieces)
        if not tokenizers:  # CLIP's vocabulary, which they share
            _check_words(prompts, tokenizer, words)
        tokenizers[encoder.name] = PromptTokenizer(
            tokenizer, encoder.vocab_size, _num_vectors(words)
        )
        tokenizers[encoder.name].check_length(encoder.length)
    return token_ids(tokenizers, prompts)


def _check_words(
    prompts: Sequence[str],
    tokenizer: "transformers.PreTrainedTokenizerFast",
    words: Words,
) -> None:
    """Raises `UserError` for words that prompts cannot mean."""
    known = [
        name
        for word, count in _num_vectors(words).items()
        for name in vector_names(word, count)
    ]
    vocabulary = tokenizer.get_vocab()
    normalize = functools.partial(known_words.normal_form, tokenizer)
    for prompt in prompts:
        for found in _PLACEHOLDER.findall(prompt):
            named = any(normalize(found) in normalize(name) for name in known)
            if not named and found not in vocabulary:
                raise UserError(
                    f"prompt {prompt!r} has {found}, which no embedding teaches "
                    f"(known: {', '.join(words) or 'none'}); give its file with "
                    "--embedding"
                )
    for word in words:
        if known_words.is_known(tokenizer, word):
            raise UserError(
                f"embedding: the word {word!r} is already in the tokenizer's "
                "vocabulary; give it another name, also in the prompts: --embedding "
                f"'{known_words.new_word(tokenizer, word)}=FILE'"
            )
        if not any(normalize(word) in normalize(prompt) for prompt in prompts):
            _log.warning("embedding: the word %s is in no prompt", word)


def _encode(
    model: base_model.BaseModel,
    ids: dict[str, Int32[np.ndarray, "P L"]],
    words: Words,
    size: tuple[int, int],
    mesh: jax.sharding.Mesh,
    last_is_empty: bool,
) -> Conditioning:
    """What is told of prompts; the text encoders are gone from memory afterwards."""
    rows, params = {}, {}
    for encoder in model.family.text_encoders:
        no_rows = np.zeros((0, encoder.width), np.float32)
        learned = [word[encoder.name] for word in words.values()]
        rows[encoder.name] = np.concatenate([no_rows, *learned])
        params[encoder.name] = model.load(encoder.name, sharding.replicated(mesh))
    return sampling.encode_prompts(params, ids, rows, model.family, size, last_is_empty)


def _latent_shape(keys: GenerateKeys, family: Family) -> tuple[int, int, int]:
    downscale = family.downscale
    sides = []
    for key, trained in zip(("height", "width"), family.sample_size, strict=True):
        pixels = getattr(keys, key) or trained * downscale
        if pixels % downscale:
            nearest = downscale * math.ceil(pixels / downscale)
            raise UserError(
                f"{key}: {pixels} is not a multiple of {downscale}, the pixels of a "
                f"latent of this model; take {nearest}"
            )
        sides.append(pixels // downscale)
    return sides[0], sides[1], family.latent_channels


def _side(count: int) -> int:
    """Columns of the squarest grid."""
    return math.ceil(math.sqrt(count))
