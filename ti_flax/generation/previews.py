"""Previews: pictures of a word while it is being learned, from the resident weights."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from ti_flax.config import generate_keys, run_config
from ti_flax.diffusion import scheduler_config
from ti_flax.generation import png, sampling
from ti_flax.models import base_model
from ti_flax.models.torch_params import Params
from ti_flax.runtime.errors import UserError
from ti_flax.text.tokenizer import PromptTokenizer, token_ids

_log = logging.getLogger(__name__)

# What `generate` makes pictures with if told nothing else.
STEPS, GUIDANCE_SCALE = (
    generate_keys.GenerateKeys.model_fields[key].default
    for key in ("steps", "guidance_scale")
)

Pictures = UInt8[np.ndarray, "N H W 3"]


class Previews:
    """Previews of each validation prompt, the same seeds every time.

    What is made at a step depends on the rows of that step alone, and is what
    `generate` makes of them with its defaults at the resolution of the training.

    Attributes:
        prompts: the validation prompts.
        control_prompts: the same without the word, or none.
    """

    def __init__(
        self,
        config: run_config.Config,
        model: base_model.BaseModel,
        tokenizers: Mapping[str, PromptTokenizer],
        mesh: jax.sharding.Mesh,
    ) -> None:
        """Checks the prompts; no weights are needed yet.

        Raises:
            UserError: a prompt without the word, or one that is too long for it.
        """
        self.prompts = config.validation_prompt
        controlled = self.prompts if config.validation_control else ()
        self.control_prompts = tuple(
            _without_word(prompt, config.placeholder_token) for prompt in controlled
        )
        self._ids = token_ids(tokenizers, [*self.prompts, ""])
        self._control_ids = token_ids(tokenizers, [*self.control_prompts, ""])
        learned = np.any(
            [
                (ids >= tokenizers[name].vocab_size).any(axis=1)
                for name, ids in self._ids.items()
            ],
            axis=0,
        )
        for prompt, has_word in zip(self.prompts, learned, strict=False):
            if not has_word:
                raise UserError(
                    f"validation_prompt: {prompt!r} lacks the word "
                    f"{config.placeholder_token}, its pictures would never change; "
                    "write the word into it (validation_control shows the prompt "
                    "without it)"
                )
        self._config = config
        self._seeds = (config.seed + np.arange(config.num_validation_images)) % 2**32
        self._scheduler = _scheduler(model)
        side = model.family.latent_side(config.resolution)
        self._recipe = sampling.SamplingRecipe(
            family=model.family,
            sampler=scheduler_config.make_sampler(
                model.scheduler, self._scheduler, STEPS
            ),
            guidance_scale=GUIDANCE_SCALE,
            latent_shape=(side, side, model.family.latent_channels),
            mesh=mesh,
        )

    def make(
        self,
        rows: Mapping[str, Float32[jax.Array | np.ndarray, "K _"]],
        params: Mapping[str, Params],
        control: bool = False,
    ) -> Iterator[tuple[str, Pictures]]:
        """Yields each prompt, or control prompt, with its `num_validation_images`.

        Args:
            rows: the word's vectors, by text encoder.
            params: of the family's parts, on every device of the mesh; of the
                autoencoder its `picture_params` are enough.
            control: make those without the word.
        """
        ids, prompts = (
            (self._control_ids, self.control_prompts)
            if control
            else (self._ids, self.prompts)
        )
        family, pixels = self._recipe.family, self._config.resolution
        told = sampling.encode_prompts(
            params, ids, rows, family, (pixels, pixels), last_is_empty=True
        )
        count = len(self._seeds)
        wanted = sampling.Wanted(
            prompts=np.repeat(np.arange(len(prompts)), count),
            seeds=np.tile(self._seeds, len(prompts)).astype(np.uint32),
            told=told,
        )
        # One picture a device at a time: training needs the rest of the memory.
        batches = sampling.make_images(
            params, wanted, self._recipe, self._recipe.mesh.size
        )
        made = (picture for batch in batches for picture in batch)
        for prompt in prompts:
            yield prompt, np.stack([next(made) for _ in range(count)])

    def save(self, prompt: str, made: Pictures, folder: Path, number: int) -> list[str]:
        """Writes a prompt's pictures as PNG that say how to make them; their names.

        `number` is that of the prompt; the names are `<number>_<picture>.png`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = []
        for index, (picture, seed) in enumerate(zip(made, self._seeds, strict=True)):
            making = png.Making(
                prompt=prompt,
                negative_prompt="",
                seed=int(seed),
                steps=STEPS,
                scheduler=self._scheduler,
                guidance_scale=GUIDANCE_SCALE,
                width=picture.shape[1],
                height=picture.shape[0],
                model=self._config.pretrained_model_name_or_path,
                words={self._config.placeholder_token: self._config.num_vectors},
            )
            names.append(f"{number}_{index}.png")
            image = png.to_image(picture, making)
            png.save(image, folder / names[-1])
        return names


def _scheduler(model: base_model.BaseModel) -> str:
    try:
        return scheduler_config.find_name(model.scheduler)
    except UserError:
        _log.warning(
            "validation_prompt: previews are made with DDIM, the model's own scheduler "
            "%s is not supported",
            model.scheduler.get("_class_name"),
        )
        return "ddim"


def _without_word(prompt: str, word: str) -> str:
    """The prompt without the word, nor a vector of it by its own name (`word_1`)."""
    found = re.compile(re.escape(word) + r"(_\d+)?", re.IGNORECASE)
    return " ".join(found.sub(" ", prompt).split())
