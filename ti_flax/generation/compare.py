"""What diffusers and ours make of one learned word, side by side."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ti_flax.config.verify_keys import VerifyKeys
from ti_flax.diffusion import scheduler_config
from ti_flax.formats.registry import ReadFile
from ti_flax.generation import generate, sampling
from ti_flax.models import base_model
from ti_flax.models.family import Family, TextEncoder
from ti_flax.models.opening import Choices
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import Embedding
from ti_flax.text.tokenizer import PromptTokenizer, load_tokenizer, vector_names

if TYPE_CHECKING:
    import diffusers


# Float32 sums in another order; the parity tests measure 1e-5.
_TOLERANCE = 1e-3
# Grey levels of 255: 8-bit pictures differ by one here and there.
_PICTURE_TOLERANCE = 0.5
_GUIDANCE_SCALE = 7.5


class Check(NamedTuple):
    """One thing that was compared, and what came out."""

    agrees: bool
    text: str


def text(
    pipeline: "diffusers.DiffusionPipeline",
    model: base_model.BaseModel,
    learned: Embedding,
    prompt: str,
) -> list[Check]:
    """Rows and token ids of each text encoder, and what the denoiser is told."""
    checks, ids = [], {}
    for encoder in model.family.text_encoders:
        own, ids[encoder.name] = _encoder(pipeline, model, encoder, learned, prompt)
        checks += own
    difference = _text_difference(pipeline, model, learned, prompt, ids)
    return [
        *checks,
        Check(
            difference <= _TOLERANCE,
            f"text encoder output: largest difference {difference:.1e}, allowed "
            f"{_TOLERANCE:.0e}",
        ),
    ]


def _encoder(
    pipeline: "diffusers.DiffusionPipeline",
    model: base_model.BaseModel,
    encoder: TextEncoder,
    learned: Embedding,
    prompt: str,
) -> tuple[list[Check], Int32[np.ndarray, "1 L"]]:
    """Rows and token ids of one text encoder; our ids."""
    rows = learned.rows[encoder.name]
    names = vector_names(learned.token, learned.num_vectors)
    tokenizer = getattr(pipeline, encoder.tokenizer)
    added = tokenizer.convert_tokens_to_ids(names)
    embeddings = getattr(pipeline, encoder.name).get_input_embeddings()
    table = embeddings.weight.detach().numpy()
    their_ids = tokenizer(
        pipeline.maybe_convert_prompt(prompt, tokenizer),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="np",
    ).input_ids
    tokenize = PromptTokenizer(
        load_tokenizer(model.tokenizer(encoder), encoder.pieces),
        encoder.vocab_size,
        {learned.token: len(names)},
    )
    our_ids = tokenize([prompt])
    # Where the table has more rows than the tokenizer words, the new ids differ.
    meant = _ours_for(their_ids, added, encoder.vocab_size)
    return [
        Check(
            np.array_equal(table[added], rows),
            f"rows: {len(names)} of width {rows.shape[1]}",
        ),
        Check(
            bool(np.array_equal(meant, our_ids)),
            f"token ids of {prompt!r}: {_words(their_ids)} and {_words(our_ids)}",
        ),
    ], our_ids


def _text_difference(
    pipeline: "diffusers.DiffusionPipeline",
    model: base_model.BaseModel,
    learned: Embedding,
    prompt: str,
    ids: dict[str, Int32[np.ndarray, "1 L"]],
) -> float:
    """The largest difference in context and, where the model has it, pooled text."""
    import torch

    family = model.family
    height, width = (side * family.downscale for side in family.sample_size)
    params = {each.name: model.load(each.name) for each in family.text_encoders}
    ours = sampling.encode_prompts(params, ids, learned.rows, family, (height, width))
    with torch.no_grad():
        # Context and, of SDXL, pooled text are its first and third.
        theirs = pipeline.encode_prompt(
            prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )[::2]
    return max(
        float(np.abs(mine - other.numpy()).max())
        for mine, other in zip(ours[: len(theirs)], theirs, strict=True)
    )


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


def pictures(
    pipeline: "diffusers.DiffusionPipeline",
    model: base_model.BaseModel,
    found: ReadFile,
    keys: VerifyKeys,
) -> Check:
    """The picture of the prompt, from the same noise.

    Raises `UserError` where a sampler draws more of it.
    """
    if scheduler_config.find_name(model.scheduler) == "lcm":
        raise UserError(
            "prompt: LCM's scheduler draws noise in each step, in PyTorch other than "
            "here, so that pictures cannot be compared; leave prompt out"
        )
    import torch

    shape = (*model.family.sample_size, model.family.latent_channels)
    noise = sampling.draw_noise(np.array([keys.seed], np.uint32), shape)
    theirs = pipeline(
        keys.prompt,
        num_inference_steps=keys.steps,
        guidance_scale=_GUIDANCE_SCALE,
        latents=torch.tensor(np.moveaxis(np.asarray(noise), -1, 1)),
        output_type="np",
        **_canvas(pipeline, model.family),
    ).images[0]
    [picture] = generate.generate_images(
        model=keys.model,
        revision=keys.revision,
        variant=keys.variant,
        **Choices.of(keys)._asdict(),
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


def _canvas(pipeline: "diffusers.DiffusionPipeline", family: Family) -> dict[str, Any]:
    """With what an inpainting pipeline is asked to paint the whole picture."""
    if family.canvas is None:
        return {}
    import torch

    height, width = (family.downscale * side for side in family.sample_size)
    grey = torch.zeros(1, 3, height, width)
    with torch.no_grad():
        means = pipeline.vae.encode(grey).latent_dist.mode()
    return {
        "image": grey,
        "mask_image": torch.ones(1, 1, height, width),
        # Else a sample of the posterior.
        "masked_image_latents": means * pipeline.vae.config.scaling_factor,
        "strength": 1.0,
    }


def _mean_difference(
    theirs: Float32[np.ndarray, "H W 3"], ours: UInt8[np.ndarray, "H W 3"]
) -> float:
    return float(np.abs(np.round(255 * theirs) - ours).mean())
