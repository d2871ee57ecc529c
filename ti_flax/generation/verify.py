"""Loads an embedding in diffusers as its users do, and compares with ours."""

import sys
from typing import TYPE_CHECKING, NamedTuple, Unpack

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from pydantic import BaseModel, Field

from ti_flax.config import validation
from ti_flax.config.fields import (
    Count,
    Integer,
    NameOrPath,
    OptionalName,
    Revision,
    Settings,
    Variant,
)
from ti_flax.config.signatures import VerifySettings, with_keys_of
from ti_flax.runtime import errors
from ti_flax.text.embedding import FIRST_ENCODER

if TYPE_CHECKING:
    import diffusers

    from ti_flax.formats.registry import ReadFile
    from ti_flax.models import base_model

USAGE = "DIR_OR_FILE --model NAME [--prompt TEXT]"

# Float32 sums in another order; the parity tests measure 1e-5.
_TOLERANCE = 1e-3
# Grey levels of 255: 8-bit pictures differ by one here and there.
_PICTURE_TOLERANCE = 0.5
_GUIDANCE_SCALE = 7.5


class VerifyKeys(Settings):
    """What to compare."""

    source: NameOrPath = Field(
        description="embedding file, folder that a run wrote, or Hub id"
    )
    model: NameOrPath = Field(
        description="Stable Diffusion 1.x or 2.x in diffusers' layout: a folder or a "
        "Hub repository"
    )
    revision: Revision = None
    variant: Variant = None
    prompt: OptionalName = Field(
        None, description="also compare a picture of this prompt; none: no picture"
    )
    seed: Integer = Field(42, ge=0, lt=2**32, description="seed of the picture")
    steps: Count = Field(25, le=10**4, description="steps from noise to picture")


GROUPS: dict[str, type[BaseModel]] = {"Comparison": VerifyKeys}


class Check(NamedTuple):
    """One thing that was compared, and what came out."""

    agrees: bool
    text: str


@with_keys_of(VerifyKeys, VerifySettings)
def verify_embedding(**settings: Unpack[VerifySettings]) -> list[Check]:
    """Compares token ids, rows, text encoder output and, with a prompt, a picture.

    As in `verify_embedding(source="output/cat", model="sd-1-5", prompt="a <cat>")`.
    Stops at the first thing that keeps PyTorch from using the file.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(VerifyKeys, settings, "with --key value")
    try:
        import diffusers
        import torch  # noqa: F401, diffusers' import alone does not need it
    except ImportError as error:
        raise errors.UserError(
            "verify needs PyTorch and diffusers, which are not installed; "
            "pip install 'ti_flax[torch]'"
        ) from error
    from ti_flax.formats import find, registry
    from ti_flax.models import base_model

    found = registry.read(find.find_file(checked.source))
    model = base_model.open_model(checked.model, checked.revision, checked.variant)
    widths = {each.name: each.width for each in model.family.text_encoders}
    find.check_fits(found.embedding, widths, "source", checked.source)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        model.folder,
        variant=checked.variant,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    loaded = _load(pipeline, found)
    if not loaded.agrees:
        return [loaded]
    checks = [loaded, *_compare_text(pipeline, model, found, checked)]
    if checked.prompt is not None:
        checks.append(_compare_pictures(pipeline, model, found, checked))
    return checks


def print_checks(**settings: Unpack[VerifySettings]) -> None:
    """Prints what was compared; ends with exit code 1 where something differs."""
    checks = verify_embedding(**settings)
    for check in checks:
        print(f"{'agrees' if check.agrees else 'differs'}: {check.text}")
    if not all(check.agrees for check in checks):
        sys.exit(1)


def _load(pipeline: "diffusers.StableDiffusionPipeline", found: "ReadFile") -> Check:
    from ti_flax.text.tokenizer import vector_names

    learned = found.embedding
    names = vector_names(learned.token, learned.num_vectors)
    before = set(pipeline.tokenizer.get_vocab())
    try:
        pipeline.load_textual_inversion(
            str(found.file.parent), weight_name=found.file.name
        )
    except Exception as error:  # whatever diffusers makes of a file it does not know
        reason = errors.one_line(error)
        return Check(
            False,
            f"diffusers does not load {found.file.name} (format {found.format}): "
            f"{reason}; convert it to diffusers",
        )
    added = sorted(set(pipeline.tokenizer.get_vocab()) - before)
    if added != sorted(names):
        return Check(
            False,
            f"diffusers loads {found.file.name} (format {found.format}) as "
            f"{', '.join(added)}, the word is {learned.token}; convert it to diffusers",
        )
    return Check(True, f"diffusers loads {found.file.name} as {', '.join(names)}")


def _compare_text(
    pipeline: "diffusers.StableDiffusionPipeline",
    model: "base_model.BaseModel",
    found: "ReadFile",
    keys: VerifyKeys,
) -> list[Check]:
    """Rows, token ids and text encoder output of the prompt."""
    import torch

    from ti_flax.generation import sampling
    from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer, vector_names

    learned = found.embedding
    rows = learned.rows[FIRST_ENCODER]
    prompt = keys.prompt or f"a photo of {learned.token}"
    names = vector_names(learned.token, learned.num_vectors)
    tokenizer = pipeline.tokenizer
    added = tokenizer.convert_tokens_to_ids(names)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    same_rows = np.array_equal(table[added], rows)
    their_ids = tokenizer(
        pipeline.maybe_convert_prompt(prompt, tokenizer),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="np",
    ).input_ids
    encoder = model.family.text_encoders[0]
    vocab_size = encoder.vocab_size
    tokenize = PromptTokenizer(
        load_tokenizer(model.folder / "tokenizer"),
        vocab_size,
        {learned.token: len(names)},
    )
    our_ids = tokenize([prompt])
    # Where the table has more rows than the tokenizer words, the new ids differ.
    meant = _ours_for(their_ids, added, vocab_size)
    with torch.no_grad():
        theirs = pipeline.text_encoder(torch.tensor(their_ids))[0].numpy()
    name, family = encoder.name, model.family
    height, width = (side * family.downscale for side in family.sample_size)
    [ours] = sampling.encode_prompts(
        {name: model.load(name)},
        {name: our_ids},
        learned.rows,
        model.family,
        (height, width),
    )
    difference = float(np.abs(ours - theirs).max())
    return [
        Check(same_rows, f"rows: {len(names)} of width {rows.shape[1]}"),
        Check(
            bool(np.array_equal(meant, our_ids)),
            f"token ids of {prompt!r}: {_words(their_ids)} and {_words(our_ids)}",
        ),
        Check(
            difference <= _TOLERANCE,
            f"text encoder output: largest difference {difference:.1e}, allowed "
            f"{_TOLERANCE:.0e}",
        ),
    ]


def _ours_for(
    ids: Int32[np.ndarray, "P L"] | np.ndarray, added: list[int], vocab_size: int
) -> np.ndarray:
    """The ids with the learned vectors numbered as ours: from the table's end on."""
    ids = np.asarray(ids)
    meant = ids.copy()
    for k, id_ in enumerate(added):
        meant[ids == id_] = vocab_size + k
    return meant


def _words(ids: np.ndarray) -> str:
    """The ids of a prompt up to its padding, which repeats the last one."""
    row = [int(id_) for id_ in ids[0]]
    length = next(
        (n for n in range(1, len(row)) if len(set(row[n - 1 :])) == 1), len(row)
    )
    return " ".join(map(str, row[:length]))


def _compare_pictures(
    pipeline: "diffusers.StableDiffusionPipeline",
    model: "base_model.BaseModel",
    found: "ReadFile",
    keys: VerifyKeys,
) -> Check:
    """The picture of the prompt, from the same noise."""
    import torch

    from ti_flax.generation import generate, sampling

    shape = (*model.family.sample_size, model.family.latent_channels)
    noise = sampling.draw_noise(np.array([keys.seed], np.uint32), shape)
    theirs = pipeline(
        keys.prompt,
        num_inference_steps=keys.steps,
        guidance_scale=_GUIDANCE_SCALE,
        latents=torch.tensor(np.moveaxis(np.asarray(noise), -1, 1)),
        output_type="np",
    ).images[0]
    [picture] = generate.generate_images(
        model=keys.model,
        revision=keys.revision,
        variant=keys.variant,
        mixed_precision="no",
        embedding=str(found.file),
        prompt=keys.prompt,
        seed=keys.seed,
        steps=keys.steps,
        guidance_scale=_GUIDANCE_SCALE,
        progress=False,
    )
    difference = _mean_difference(theirs.astype(np.float32), np.asarray(picture))
    return Check(
        difference <= _PICTURE_TOLERANCE,
        f"picture of seed {keys.seed}, {keys.steps} steps: mean difference "
        f"{difference:.2f} grey levels of 255, allowed {_PICTURE_TOLERANCE}",
    )


def _mean_difference(
    theirs: Float32[np.ndarray, "H W 3"], ours: UInt8[np.ndarray, "H W 3"]
) -> float:
    return float(np.abs(np.round(255 * theirs) - ours).mean())
