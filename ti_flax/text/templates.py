"""The sentences a concept is trained in."""

from pathlib import Path
from typing import Literal

from ti_flax.runtime.errors import UserError

SLOT = "{}"
# As AUTOMATIC1111's templates have them: the placeholder, and the picture's caption.
NAME = "[name]"
FILEWORDS = "[filewords]"

_QUALITIES = (
    "good",
    "bad",
    "cropped",
    "close-up",
    "bright",
    "dark",
    "jpeg corrupted",
)
_LOOKS = ("clean", "dirty", "weird", "cool", "nice", "small", "large")
_ART_FORMS = ("painting", "drawing", "picture", "rendering", "depiction")

# What CLIP's zero-shot prompts vary (article, quality of the picture, look of the
# subject, medium), so that the rows need not encode any of it themselves.
OBJECT_TEMPLATES = (
    *(f"a photo of {article} {SLOT}" for article in ("a", "the", "my", "one")),
    *(f"a {quality} photo of the {SLOT}" for quality in _QUALITIES),
    *(f"a {quality} photo of a {SLOT}" for quality in _QUALITIES),
    *(f"a photo of a {look} {SLOT}" for look in _LOOKS),
    f"a rendering of the {SLOT}",
    f"a depiction of a {SLOT}",
)
STYLE_TEMPLATES = (
    *(f"a {form} in the style of {SLOT}" for form in _ART_FORMS),
    f"the painting in the style of {SLOT}",
    f"my painting in the style of {SLOT}",
    *(f"a {quality} painting in the style of {SLOT}" for quality in _QUALITIES),
    *(f"a {look} painting in the style of {SLOT}" for look in _LOOKS),
)


def prompt_templates(
    learnable_property: Literal["object", "style"], template_file: Path | None = None
) -> list[str]:
    """Returns the templates of a concept, each with `{}` where its placeholder goes.

    A file of the user's own (UTF-8, one template a line, blank lines and lines that
    begin with # skipped) takes the place of the built-in list. Fill a template with
    `template.replace("{}", placeholder)`: other braces are text. `[name]` in the file
    becomes `{}`. A template with `[filewords]`, where the caption of a picture goes,
    may leave the placeholder to that.

    Raises:
        UserError: the file cannot be read, holds no template, or a line of it does
            not hold `{}` or `[name]` exactly once.
    """
    if template_file is not None:
        return _read_templates(template_file)
    return list(OBJECT_TEMPLATES if learnable_property == "object" else STYLE_TEMPLATES)


def _read_templates(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"template_file {path} cannot be read ({error.strerror}); give a text file"
            f" with one template a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"template_file {path} is not UTF-8 text; save it as UTF-8"
        ) from error
    templates = []
    for number, line in enumerate(text.splitlines(), start=1):
        template = line.strip().replace(NAME, SLOT)
        if not template or template.startswith("#"):
            continue
        if template.count(SLOT) != 1 and not (
            FILEWORDS in template and SLOT not in template
        ):
            raise UserError(
                f"template_file {path}, line {number}: expected {SLOT} exactly once,"
                f" where the placeholder goes, found it {template.count(SLOT)} times"
                f" in {template!r}"
            )
        templates.append(template)
    if not templates:
        raise UserError(
            f"template_file {path} holds no template; write one a line, with {SLOT}"
            f" where the placeholder goes"
        )
    return templates
