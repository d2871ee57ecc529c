"""A picture's caption as prompts: where the new word goes, and what is random in it.

Prefix, suffix, wildcards, kept tags, shuffling and dropping are kohya's and come in its
order (sd-scripts, `process_caption`). What is random there in every epoch is here drawn
before training, into a number of variants; each is a function of (seed, picture,
variant).
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from ti_flax.text.templates import FILEWORDS, NAME, SLOT

# The place of the new word until a prompt is ready; no caption has control characters.
_WORD, _OPEN, _CLOSE = "\0", "\1", "\2"
_WILDCARD = re.compile(r"\{([^}]+)\}")

T = TypeVar("T")


class Rules(NamedTuple):
    """How captions become prompts; the names are those of the keys of a run."""

    placeholder_token: str
    seed: int = 0
    trigger_word: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_lines: Literal["each", "first", "join"] = "each"
    caption_separator: str = ","
    shuffle_caption: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str | None = None
    caption_tag_dropout_rate: float = 0.0
    enable_wildcard: bool = False
    caption_variants: int = 16


def prompts_of(
    text: str, rules: Rules, picture: int, templates: Sequence[str] = (FILEWORDS,)
) -> list[str]:
    """The prompts that a picture is trained with; each is drawn equally often.

    Each line of the text in each template; where something in them is random, at least
    `caption_variants` of them, in which lines and templates come equally often.

    Args:
        text: lines of captions, none of them blank.
        picture: its number, from which its variants are drawn.
        templates: sentences with `[filewords]` where a caption goes.
    """
    frames = [template.replace(SLOT, _WORD) for template in templates]
    lines = text.split("\n")
    if rules.caption_lines != "each":
        lines = lines[:1] if rules.caption_lines == "first" else [" ".join(lines)]
    pairs = [
        (frame, _with_word(line, _WORD in frame, rules))
        for frame in frames
        for line in lines
    ]
    count = len(pairs)
    if any(_is_random(caption, rules) for _, caption in pairs):
        count *= math.ceil(rules.caption_variants / count)
    prompts = []
    for variant in range(count):
        frame, caption = pairs[variant % len(pairs)]
        draws = _Draws(rules.seed, picture, variant)
        prompt = frame.replace(FILEWORDS, _varied(caption, rules, draws))
        prompts.append(prompt.replace(_WORD, rules.placeholder_token))
    return prompts


def _with_word(line: str, framed: bool, rules: Rules) -> str:
    """A caption with prefix, suffix and the place of the new word.

    `framed`: the template has a place for it already.
    """
    caption = line
    if rules.caption_prefix:
        joint = "" if rules.caption_prefix[-1].isspace() else " "
        caption = f"{rules.caption_prefix}{joint}{caption}"
    if rules.caption_suffix:
        caption = f"{caption} {rules.caption_suffix}"
    word = _composed(rules.placeholder_token)
    caption = re.sub(re.escape(word), _WORD, _composed(caption), flags=re.IGNORECASE)
    caption = caption.replace(NAME, _WORD).replace(SLOT, _WORD)
    if rules.trigger_word:
        trigger = re.escape(_composed(rules.trigger_word))
        caption = re.sub(rf"(?<!\w){trigger}(?!\w)", _WORD, caption, flags=re.I)
    said = framed or rules.trigger_word or rules.caption_prefix is not None
    return caption if _WORD in caption or said else f"{_WORD}, {caption}"


def _is_random(caption: str, rules: Rules) -> bool:
    if rules.enable_wildcard and re.search(r"\{[^}]*\|[^}]*\}", caption):
        return True
    flexible = _tags(caption, rules)[1]
    shuffled = rules.shuffle_caption and len(flexible) > 1
    return shuffled or (rules.caption_tag_dropout_rate > 0 and len(flexible) > 0)


class _Draws:
    """Random numbers that no version of numpy changes: the raw ones of PCG64."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self) -> float:
        """In [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(self.uniform() * len(options))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """In an order that is one of all with equal chance (Fisher and Yates)."""
        values = list(values)
        for last in range(len(values) - 1, 0, -1):
            other = int(self.uniform() * (last + 1))
            values[last], values[other] = values[other], values[last]
        return values


def _varied(caption: str, rules: Rules, draws: _Draws) -> str:
    if rules.enable_wildcard:
        escaped = caption.replace("{{", _OPEN).replace("}}", _CLOSE)
        chosen = _WILDCARD.sub(lambda m: draws.one_of(m[1].split("|")), escaped)
        caption = chosen.replace(_OPEN, "{").replace(_CLOSE, "}")
    rate, marked = rules.caption_tag_dropout_rate, rules.keep_tokens_separator
    if not (rules.shuffle_caption or rate > 0 or (marked and marked in caption)):
        return caption
    first, flexible, last = _tags(caption, rules)
    if rules.shuffle_caption:
        flexible = draws.shuffled(flexible)
    if rate > 0:
        flexible = [tag for tag in flexible if draws.uniform() >= rate or _WORD in tag]
    return ", ".join([*first, *flexible, *last])


def _tags(caption: str, rules: Rules) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, those that do not, and those that stay behind."""

    def split(part: str) -> list[str]:
        tags = (tag.strip() for tag in part.split(rules.caption_separator))
        return [tag for tag in tags if tag]

    separator = rules.keep_tokens_separator
    if separator and separator in caption:
        parts = caption.split(separator, 2)
        first, flexible, last = (split(part) for part in [*parts, ""][:3])
        return first, flexible, last
    tags = split(caption)
    return tags[: rules.keep_tokens], tags[rules.keep_tokens :], []


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
