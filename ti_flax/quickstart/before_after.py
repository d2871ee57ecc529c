"""One picture that shows what a run has taught: before, after, and elsewhere."""

import logging
from pathlib import Path

from PIL import Image

from ti_flax.config import run_config
from ti_flax.data.folder import read_pictures
from ti_flax.generation import generate
from ti_flax.quickstart import contact_sheet
from ti_flax.reports import page
from ti_flax.runtime import atomic
from ti_flax.training import run
from ti_flax.training.cropping import cropping

_log = logging.getLogger(__name__)

_COLUMNS = 5
_PROMPT = "a photo of a {}"
# A background, a style and templates that no picture of the concept shows.
_CONTEXTS = (
    "a photo of a {} on a black background",
    "a rendering of the {} on a pink background",
    "a close-up photo of my {} on a blue background",
    "a bright photo of a {} on a white background",
    "a photo of a {} in the style of aurelo",
)
_SEED = 1
_STEPS = 25
_GUIDANCE_SCALE = 3.0


def learn_and_show(config: run_config.Config) -> None:
    """Trains `config`'s word and writes the picture of it."""
    run.train_concepts(config)
    write(config)


def write(config: run_config.Config) -> Path:
    """Writes before_after.png beside what `config`'s run has learned; its path.

    Rows: the pictures to learn from, the initializer's word and the learned word from
    the same noise, and the learned word in new contexts.
    """
    word, initializer = config.placeholder_token, config.initializer_token
    plain = [_PROMPT.format(name) for name in (initializer, word) if name]
    contexts = [context.format(word) for context in _CONTEXTS]
    before_and_after = _generate(config, plain, _COLUMNS)
    rows = [contact_sheet.Row("The pictures to learn from", _training_pictures(config))]
    for number, prompt in enumerate(plain):
        time = "After" if prompt == plain[-1] else "Before"
        images = before_and_after[number * _COLUMNS :][:_COLUMNS]
        rows.append(contact_sheet.Row(f"{time}: \u201c{prompt}\u201d", images))
    rows.append(
        contact_sheet.Row(
            f"{word} in new contexts", _generate(config, contexts, 1), contexts
        )
    )
    path, sheet = config.output_dir / "before_after.png", contact_sheet.lay_out(rows)
    with atomic.atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    page.add_picture(config.output_dir, "Before and after", sheet)
    _log.info("wrote %s", path)
    return path


def _training_pictures(config: run_config.Config) -> list[Image.Image]:
    pictures = read_pictures(config.train_data_dir, cropping(config), config.folders)
    return [Image.fromarray(image) for image in pictures.images[:_COLUMNS]]


def _generate(
    config: run_config.Config, prompts: list[str], num_images: int
) -> list[Image.Image]:
    # Both calls make batches of one size, so that the second compiles nothing.
    return generate.generate_images(
        model=config.pretrained_model_name_or_path,
        revision=config.revision,
        variant=config.variant,
        mixed_precision=config.mixed_precision,
        embedding=str(config.output_dir),
        prompt=prompts,
        num_images=num_images,
        seed=_SEED,
        steps=_STEPS,
        guidance_scale=_GUIDANCE_SCALE,
        batch_size=_COLUMNS,
        progress=False,
    )
