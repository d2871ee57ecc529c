"""Which programs read a file of a word, and which format a program is given."""

from ti_flax.config import folder_names
from ti_flax.runtime.errors import UserError
from ti_flax.text.embedding import LDM_WIDTH, SD1_WIDTH, SD2_WIDTH, Embedding

# Of `convert --to`, for programs that call a word by the name of its file; how a
# prompt there has it.
NAMED_BY_FILE = {"automatic1111": "{}", "comfyui": "embedding:{}", "forge": "{}"}

_FIRST_FAMILIES = [SD1_WIDTH], [SD2_WIDTH]
# CLIP-G's rows are as wide as LDM's BERT's.
_SDXL_WIDTHS = [SD1_WIDTH, LDM_WIDTH]
_KOHYA = "kohya's sd-scripts"
_SDXL = ("AUTOMATIC1111", "Forge", "ComfyUI", "InvokeAI", _KOHYA)
# By format, of Stable Diffusion 1.x and 2.x; docs/formats.md has the same.
READERS: dict[str, tuple[str, ...]] = {
    "diffusers": ("diffusers", "AUTOMATIC1111", "Forge", "ComfyUI", _KOHYA),
    "diffusers-flat": ("diffusers up to 0.15", "InvokeAI"),
    "kohya": (_KOHYA, "InvokeAI", "ComfyUI", "AUTOMATIC1111"),
    "invokeai": ("InvokeAI", "invoke-training"),
    "sdxl": _SDXL,
    "onetrainer": ("OneTrainer",),
    "onetrainer-bundle": ("OneTrainer", "ComfyUI"),
    "replicate": ("cog-sdxl",),
    "a1111": (
        "AUTOMATIC1111",
        "diffusers",
        "OneTrainer",
        "ComfyUI",
        _KOHYA,
        "InvokeAI",
    ),
    "a1111-png": ("AUTOMATIC1111", "Forge"),
    "rinongal": ("the original code",),
    "flax": (),
}
# Of SDXL, whose rows most formats hold in the same way.
_OF_SDXL = {
    "diffusers": ("diffusers",),
    "onetrainer-bundle": READERS["onetrainer-bundle"],
    "replicate": READERS["replicate"],
}


def readers(format_: str, embedding: Embedding) -> tuple[str, ...]:
    """The programs that read a file of the format, and know words of these widths."""
    widths = [*embedding.widths.values()]
    if widths in _FIRST_FAMILIES:
        return READERS[format_]
    if widths == _SDXL_WIDTHS:
        return _OF_SDXL.get(format_, _SDXL)
    if widths == [LDM_WIDTH]:
        return READERS["rinongal"] if format_ == "rinongal" else ()
    return ("diffusers",) if format_ == "diffusers" else ()


def format_for(program: str, embedding: Embedding) -> str:
    """The format of a word for one of `NAMED_BY_FILE`.

    Raises `UserError` for rows of a width that none of them knows.
    """
    widths = [*embedding.widths.values()]
    if widths in _FIRST_FAMILIES:
        return "diffusers"
    if widths == _SDXL_WIDTHS:
        return "sdxl"
    raise UserError(
        f"{embedding.token} is for {embedding.family}: {program} has no such model; "
        "convert to diffusers"
    )


def file_name(token: str) -> str:
    """The word as the name of a file: `<my-cat>` is my-cat."""
    return folder_names.made(token)
