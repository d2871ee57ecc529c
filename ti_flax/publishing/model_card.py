"""The README.md of a Concepts Library folder: what the Hub shows of a concept."""

from pathlib import Path
from typing import Literal

from ti_flax.publishing import usage
from ti_flax.runtime import atomic
from ti_flax.text.embedding import Embedding

README_NAME = "README.md"

_TAGS = {
    "latent diffusion": ["latent-diffusion"],
    "SDXL": ["stable-diffusion-xl", "stable-diffusion-xl-diffusers"],
    "Stable Diffusion": ["stable-diffusion", "stable-diffusion-diffusers"],
}
_FACTS = {
    "steps": "steps",
    "start": "best of several starts",
    "resolution": "resolution in pixels",
    "base_model_sha256": "sha256 of the base model",
    "pictures_sha256": "sha256 of the training pictures",
    "version": "ti_flax",
}


def write(
    folder: Path,
    embedding: Embedding,
    learnable_property: Literal["object", "style"],
    base_model_id: str | None,
    license: str | None,
) -> None:
    """Writes README.md for the concept that `concept_folder.export_concept` wrote.

    `base_model_id` is a Hub id, None for a model that has none; `license` is an
    identifier of the Hub's list (mit, creativeml-openrail-m, other...), None for none.
    """
    # Slow to import: only when a card is written.
    from huggingface_hub import ModelCardData

    family = "SDXL" if len(embedding.rows) > 1 else "Stable Diffusion"
    if embedding.fits_ldm:
        family = "latent diffusion"
    data = ModelCardData(
        base_model=base_model_id,
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*_TAGS[family], "diffusers", "textual_inversion", "ti_flax"],
    )
    body = _body(folder, embedding, learnable_property)
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    with atomic.atomic_path(folder / README_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _body(
    folder: Path, embedding: Embedding, learnable_property: Literal["object", "style"]
) -> str:
    token = _code(embedding.token)
    base = embedding.provenance.get("base_model", embedding.family)
    names = [path.name for path in (folder / "concept_images").glob("*.jpeg")]
    names.sort(key=lambda name: (len(name), name))  # 10.jpeg after 9.jpeg
    shown = " ".join(f"![](concept_images/{name})" for name in names)
    facts = {"vectors": str(embedding.num_vectors)}
    facts |= {
        title: embedding.provenance[key]
        for key, title in _FACTS.items()
        if key in embedding.provenance
    }
    table = "\n".join(f"| {title} | {_cell(text)} |" for title, text in facts.items())
    prompt = f"a photo of {embedding.token}"
    loading = usage.loading([*embedding.widths.values()], "", prompt)
    article = "an object" if learnable_property == "object" else "a style"
    return f"""# {token}

{token} is {article} that {_code(base)} learned by Textual Inversion
([arXiv 2208.01618](https://arxiv.org/abs/2208.01618)), from these pictures:

{shown}

```python
{loading}
```

{_for_others(embedding)}

| | |
|---|---|
{table}
"""


def _for_others(embedding: Embedding) -> str:
    """What loads the word besides diffusers."""
    if embedding.fits_ldm:
        return """\
`python -m ti_flax.generate` draws with it. `python -m ti_flax.convert --to rinongal`
writes it for the original code, where prompts have `*` in its place. No other program
knows words of this model."""
    name = usage.file_for_others(embedding.widths.values())
    if name is None:
        return """\
`python -m ti_flax.convert` writes it for other programs, where they know its base
model."""
    return f"""\
AUTOMATIC1111, Forge and ComfyUI read `{name}` from their embeddings
folder, under the name that it has there. `python -m ti_flax.convert` writes it for
InvokeAI, kohya's scripts, OneTrainer and others."""


def _code(text: str) -> str:
    """A text as code: a token such as <cat> would be taken for HTML."""
    return f"`{text.replace('`', ' ')}`"


def _cell(text: str) -> str:
    return text.replace("|", " ").replace("\n", " ")
