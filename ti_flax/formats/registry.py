"""All formats by name, and how a file is read and written in them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ti_flax.formats import (
    containers,
    named_rows,
    replicate_tokens,
    string_to_param,
    token_keyed,
)
from ti_flax.formats.checks import RawWord, Reading, checked, shown
from ti_flax.formats.content import Content, Kind
from ti_flax.formats.metadata import provenance_in, to_texts
from ti_flax.pickles.refused import Refused
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import LDM_WIDTH, Embedding


class ReadFile(NamedTuple):
    """A file that has been read: its format, its word, and all that it says of it."""

    file: Path
    format: str
    embedding: Embedding
    metadata: Mapping[str, object]


class Format(NamedTuple):
    """How a program names the tensors of an embedding."""

    program: str
    # The words in a file's content; None when it is not laid out so.
    find: Callable[[Content], Reading | None]
    make: Callable[[Embedding], Any]
    # Programs go by a file's suffix; the first is the usual one.
    suffixes: Mapping[str, Kind]
    # How many text encoders' rows have a place; SDXL has two.
    num_encoders: int = 2
    # Whether rows of latent diffusion's BERT have one.
    ldm: bool = False
    metadata: Callable[[Embedding], Mapping[str, str]] = to_texts


# In the order in which a file is tried; the names are those of `convert --to`.
FORMATS = {
    "onetrainer-bundle": Format(
        "OneTrainer's LoRA files",
        named_rows.find_bundle,
        named_rows.make_bundle,
        {".safetensors": "safetensors"},
    ),
    "flax": Format(
        "diffusers' Flax script",
        token_keyed.find_flax,
        token_keyed.make_flat,
        {".npy": "npy"},
        num_encoders=1,
        ldm=True,
    ),
    "diffusers-flat": Format(
        "diffusers up to 0.15",
        token_keyed.find_flat,
        token_keyed.make_flat,
        {".bin": "torch", ".safetensors": "safetensors"},
        num_encoders=1,
        ldm=True,
    ),
    "diffusers": Format(
        "diffusers",
        token_keyed.find,
        token_keyed.make,
        {".safetensors": "safetensors", ".bin": "torch"},
        ldm=True,
    ),
    "kohya": Format(
        "kohya's sd-scripts",
        named_rows.find_kohya,
        named_rows.make_plain,
        {".safetensors": "safetensors", ".pt": "torch"},
        metadata=named_rows.model_spec,
    ),
    "invokeai": Format(
        "InvokeAI",
        named_rows.find_plain,
        named_rows.make_plain,
        {".safetensors": "safetensors"},
    ),
    "sdxl": Format(
        "ComfyUI, AUTOMATIC1111 and Forge with SDXL",
        named_rows.find_sdxl,
        named_rows.make_sdxl,
        {".safetensors": "safetensors"},
    ),
    "onetrainer": Format(
        "OneTrainer",
        named_rows.find_onetrainer,
        named_rows.make_onetrainer,
        {".safetensors": "safetensors"},
    ),
    "replicate": Format(
        "Replicate's cog-sdxl",
        named_rows.find_replicate,
        named_rows.make_replicate,
        {".pti": "safetensors"},
    ),
    "a1111-png": Format(
        "AUTOMATIC1111, a picture",
        string_to_param.find_png,
        string_to_param.make_a1111,
        {".png": "png"},
        num_encoders=1,
    ),
    "a1111": Format(
        "AUTOMATIC1111",
        string_to_param.find_a1111,
        string_to_param.make_a1111,
        {".pt": "torch"},
        num_encoders=1,
    ),
    "rinongal": Format(
        "the original code, rinongal/textual_inversion",
        string_to_param.find_rinongal,
        string_to_param.make_rinongal,
        {".pt": "torch"},
        num_encoders=1,
        ldm=True,
    ),
}


def read(file: Path, token: str | None = None) -> ReadFile:
    """Reads an embedding file of any format; nothing in it is executed.

    Of a file with several words, `token` says which.

    Raises:
        UserError: when there is no such file, it is damaged, its format is unknown,
            `token` is needed, or its rows are not finite.
    """
    content = containers.read(file)
    try:
        name, reading = _recognise(content)
        word = _choose(reading.words, token)
        if name.startswith("diffusers"):
            word = _joined(file, word)
    except Refused as refusal:
        raise UserError(f"{file} {refusal}") from None
    if name == "replicate" and word.token is None:
        word = word._replace(token=replicate_tokens.read(file))
    embedding = checked(file, word, provenance_in(reading.metadata))
    return ReadFile(file, name, embedding, reading.metadata)


def _recognise(content: Content) -> tuple[str, Reading]:
    for name, layout in FORMATS.items():
        reading = layout.find(content)
        if reading is not None:
            return name, reading
    raise Refused(
        f"holds no embedding in a known format ({', '.join(FORMATS)}): "
        f"found {_described(content.value)}"
    )


def _described(value: object) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    return f"{len(value)} key(s) {shown(', '.join(map(str, value)))}"


def _choose(words: list[RawWord], token: str | None) -> RawWord:
    if len(words) == 1:
        return words[0]
    chosen = [word for word in words if word.token == token]
    if not chosen:
        names = shown(", ".join(str(word.token) for word in words))
        raise Refused(
            f"holds {len(words)} words ({names}) where one is needed: say which, by "
            "WORD=FILE in --embedding or by --token of convert and inspect"
        )
    return chosen[0]


def _joined(file: Path, word: RawWord) -> RawWord:
    """With the rows of the second file, where diffusers' SDXL script wrote one."""
    for encoder, other in token_keyed.other_files(file).items():
        if other.is_file():
            word = token_keyed.join(word, encoder, containers.read(other), other)
    return word


def write(path: Path, name: str, embedding: Embedding) -> list[Path]:
    """Writes an embedding in the format `name`; returns the files written.

    `path` is a file, or a folder that gets a file of the usual name; in diffusers'
    format SDXL's rows are two files.

    Raises:
        UserError: when the format has no place for the embedding's rows, or its program
            would not know the file's suffix.
    """
    layout = FORMATS[name]
    wanted = len(embedding.rows)
    if wanted > layout.num_encoders:
        fitting = [
            key for key, other in FORMATS.items() if other.num_encoders >= wanted
        ]
        raise UserError(
            f"{embedding.token} has rows for {wanted} text encoders "
            f"({embedding.family}), a file of format {name} holds those of "
            f"{layout.num_encoders}: convert to {', '.join(fitting)}"
        )
    if embedding.fits_ldm and not layout.ldm:
        fitting = [key for key, other in FORMATS.items() if other.ldm]
        raise UserError(
            f"{embedding.token} has rows of width {LDM_WIDTH} alone, of latent "
            f"diffusion with BERT, which {layout.program} has not: convert to "
            f"{', '.join(fitting)}"
        )
    path = target(path, name)
    if path.suffix not in layout.suffixes:
        raise UserError(
            f"{path}: {layout.program} knows format {name} by the suffix "
            f"{' or '.join(layout.suffixes)}, found {path.suffix!r}; name it so"
        )
    parts = {path: embedding}
    if name == "diffusers" and wanted > 1:
        parts = token_keyed.split(path, embedding)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = layout.suffixes[path.suffix]
    for part, rows in parts.items():
        metadata = layout.metadata(embedding)
        containers.write(part, Content(kind, layout.make(rows), metadata))
    written = list(parts)
    if name == "replicate":
        written.append(replicate_tokens.write(path, embedding))
    return written


def target(path: Path, name: str) -> Path:
    """The file that `write` makes of a path: in a folder it has the usual name."""
    usual = next(iter(FORMATS[name].suffixes))
    return path / f"learned_embeds{usual}" if path.is_dir() or not path.suffix else path
