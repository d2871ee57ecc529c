"""Loads an embedding in diffusers as its users do, and compares with ours."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ti_flax.config import validation
from ti_flax.config.signatures import VerifySettings, with_keys_of
from ti_flax.config.verify_keys import VerifyKeys
from ti_flax.formats import find, registry
from ti_flax.generation import compare
from ti_flax.models import base_model, written_folder
from ti_flax.models.family import Family
from ti_flax.models.opening import Choices
from ti_flax.models.sources import DiffusersFolder
from ti_flax.runtime import errors
from ti_flax.text.embedding import Embedding
from ti_flax.text.tokenizer import vector_names

if TYPE_CHECKING:
    import diffusers


@with_keys_of(VerifyKeys, VerifySettings)
def verify_embedding(**settings: Unpack[VerifySettings]) -> list[compare.Check]:
    """Compares token ids, rows, text encoder output and, with a prompt, a picture.

    As in `verify_embedding(source="output/cat", model="sd-1-5", prompt="a <cat>")`.
    Stops at the first thing that keeps PyTorch from using the file.

    Raises:
        UserError: what to mend, in one line.
    """
    checked = validation.validate(VerifyKeys, settings, "with --key value")
    try:
        # diffusers' import alone does not need PyTorch.
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise errors.UserError(
            "verify needs PyTorch and diffusers, which are not installed; "
            "pip install 'ti_flax[torch]'"
        ) from error
    found = registry.read(find.find_file(checked.source))
    model = base_model.open_model(
        checked.model, checked.revision, checked.variant, choices=Choices.of(checked)
    )
    widths = {each.name: each.width for each in model.family.text_encoders}
    find.check_fits(found.embedding, widths, "source", checked.source)
    with _folder(model, checked) as (folder, variant):
        pipeline = _open_pipeline(model.family, folder, variant)
        loaded = _load(pipeline, model.family, found)
        if not loaded.agrees:
            return [loaded]
        prompt = checked.prompt or f"a photo of {found.embedding.token}"
        checks = [loaded, *compare.text(pipeline, model, found.embedding, prompt)]
        if checked.prompt is not None:
            checks.append(compare.pictures(pipeline, model, found, checked))
    return checks


@contextlib.contextmanager
def _folder(
    model: base_model.BaseModel, keys: VerifyKeys
) -> Iterator[tuple[Path, str | None]]:
    """A folder for diffusers and the variant in it; of one file, it is written.

    diffusers' own reading of single files asks the Hub for what they lack.
    """
    if isinstance(model.source, DiffusersFolder) and not Choices.of(keys).noise():
        yield model.source.path, keys.variant
        return
    with tempfile.TemporaryDirectory(prefix="ti_flax-verify-") as place:
        written_folder.write(Path(place), model)
        yield Path(place), None


def _open_pipeline(
    family: Family, folder: Path, variant: str | None
) -> "diffusers.DiffusionPipeline":
    """diffusers' pipeline of a model's folder, without a safety checker."""
    import diffusers

    kind = getattr(diffusers, family.pipeline)
    if not hasattr(kind, "load_textual_inversion"):
        raise errors.UserError(
            f"verify: diffusers' {family.pipeline} loads no learned words, there is "
            "nothing to compare; train with save_as_full_pipeline for a pipeline that "
            "has the word"
        )
    settings = {"variant": variant}
    if "safety_checker" in family.optional_parts:
        settings |= {"safety_checker": None, "requires_safety_checker": False}
    pipeline = kind.from_pretrained(folder, **settings)
    pipeline.set_progress_bar_config(disable=True)
    if len(family.text_encoders) > 1:
        # Else transformers pools the text at the learned word, not at its end.
        pooling = pipeline.text_encoder_2.text_model
        pooling.eos_token_id = pipeline.tokenizer_2.eos_token_id
    return pipeline


def print_checks(**settings: Unpack[VerifySettings]) -> None:
    """Prints what was compared; ends with exit code 1 where something differs."""
    checks = verify_embedding(**settings)
    for check in checks:
        print(f"{'agrees' if check.agrees else 'differs'}: {check.text}")
    if not all(check.agrees for check in checks):
        sys.exit(1)


def _load(
    pipeline: "diffusers.DiffusionPipeline", family: Family, found: registry.ReadFile
) -> compare.Check:
    learned, file = found.embedding, found.file.name
    names = vector_names(learned.token, learned.num_vectors)
    tokenizers = [getattr(pipeline, each.tokenizer) for each in family.text_encoders]
    before = [set(tokenizer.get_vocab()) for tokenizer in tokenizers]
    try:
        if len(tokenizers) == 1:
            pipeline.load_textual_inversion(
                str(found.file.parent), weight_name=found.file.name
            )
        else:
            _load_each(pipeline, family, learned)
    except Exception as error:  # whatever diffusers makes of a file it does not know
        return compare.Check(
            False,
            f"diffusers does not load {file} (format {found.format}): "
            f"{errors.one_line(error)}; convert it to diffusers",
        )
    for tokenizer, known in zip(tokenizers, before, strict=True):
        added = sorted(set(tokenizer.get_vocab()) - known)
        if added != sorted(names):
            return compare.Check(
                False,
                f"diffusers loads {file} (format {found.format}) as "
                f"{', '.join(added)}, the word is {learned.token}; convert it to "
                "diffusers",
            )
    return compare.Check(True, f"diffusers loads {file} as {', '.join(names)}")


def _load_each(
    pipeline: "diffusers.DiffusionPipeline", family: Family, learned: Embedding
) -> None:
    """Rows of several text encoders, which diffusers takes one after another."""
    import torch

    for encoder in family.text_encoders:
        pipeline.load_textual_inversion(
            torch.from_numpy(learned.rows[encoder.name]),
            token=learned.token,
            tokenizer=getattr(pipeline, encoder.tokenizer),
            text_encoder=getattr(pipeline, encoder.name),
        )
