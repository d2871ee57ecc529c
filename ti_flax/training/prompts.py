"""The prompts of a run: templates, or the captions of its pictures."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from ti_flax.config import run_config
from ti_flax.config.caption_keys import CaptionKeys
from ti_flax.data.captions import (
    Captions,
    found_kinds,
    from_file_name,
    read_captions,
)
from ti_flax.runtime import hosts
from ti_flax.runtime.errors import UserError, listed, one_line, shown
from ti_flax.text.captions import Rules, prompts_of
from ti_flax.text.templates import FILEWORDS, SLOT, prompt_templates
from ti_flax.text.tokenizer import PromptTokenizer, shortened, token_ids

_log = logging.getLogger(__name__)


class Prompts(NamedTuple):
    """Token ids, and which of them are for which picture."""

    # By the text encoder's name: templates, then captions picture by picture, then the
    # empty prompt where one may be dropped.
    ids: dict[str, Int32[np.ndarray, "P L"]]
    # Of each picture: its first prompt, and how many it has.
    spans: Int32[np.ndarray, "N 2"]
    num_templates: int
    has_captions: bool

    def of_captions(self) -> list[np.ndarray]:
        """What a fingerprint of the captions is made of; nothing without any."""
        if not self.has_captions:
            return []
        ids = [each[self.num_templates :] for each in self.ids.values()]
        return [*ids, self.spans - [self.num_templates, 0]]


def read_prompts(
    config: run_config.Config,
    pictures: Sequence[str],
    tokenizers: Mapping[str, PromptTokenizer],
) -> Prompts:
    """Reads captions as the keys ask for, and templates where there are none.

    Args:
        pictures: paths of the pictures' files inside `train_data_dir`.
        tokenizers: by the text encoder's name.

    Raises:
        UserError: a file is damaged, or the new word is not in a prompt or would be
            cut off.
    """
    templates = prompt_templates(config.learnable_property, config.template_file)
    captions = _read(config, pictures, templates)
    hosts.check_equal("caption_source", [captions.source, *map(ascii, captions.texts)])
    frames = [FILEWORDS] if captions.source != "none" else []
    if any(FILEWORDS in template for template in templates):
        frames, templates = templates, []
    if all(captions.texts) and frames:
        templates = []
    first, rules = next(iter(tokenizers.values())), _rules(config)
    spans, added = [], list[str]()
    for number, (name, text) in enumerate(zip(pictures, captions.texts, strict=True)):
        if not text and templates:
            spans.append([0, len(templates)])
            continue
        own = prompts_of(text, rules, number, frames)
        _check(name, own, first, config)
        spans.append([len(templates) + len(added), len(own)])
        added += own
    _tell(config, captions, pictures, added, templates)
    word = config.placeholder_token
    sentences = [template.replace(SLOT, word) for template in templates]
    # The step takes the last prompt where it drops a caption.
    more = [*added, ""] if config.caption_dropout_rate > 0 else added
    ids = {
        name: np.concatenate([ids, tokenizers[name](more, check=False)])
        for name, ids in token_ids(tokenizers, sentences).items()
    }
    return Prompts(ids, np.array(spans, np.int32), len(templates), bool(added))


def _read(
    config: run_config.Config, pictures: Sequence[str], templates: Sequence[str]
) -> Captions:
    """Captions, and file names where the user's templates ask for more."""
    source, folder = config.caption_source, config.train_data_dir
    framed = any(FILEWORDS in template for template in templates)
    if framed and source == "none":
        raise UserError(
            f"caption_source: expected captions for the {FILEWORDS} of template_file "
            f"{config.template_file}, found none; leave caption_source out"
        )
    if config.template_file is not None and not framed:
        if source not in ("auto", "none"):
            raise UserError(
                f"expected caption_source or template_file, found both ({source!r}, "
                f"'{config.template_file}'); remove one, or write {FILEWORDS} into the "
                "templates where the caption goes"
            )
        idle = found_kinds(folder, pictures) if source == "auto" else []
        if idle:
            _log.info(
                "template_file: the captions beside the pictures (%s) are not read; "
                "%s in a template is where a caption goes",
                ", ".join(idle),
                FILEWORDS,
            )
        source = "none"
    captions = read_captions(folder, pictures, source, config.caption_separator)
    if framed:
        pairs = zip(pictures, captions.texts, strict=True)
        texts = tuple(text or from_file_name(name) for name, text in pairs)
        source = "filename" if captions.source == "none" else captions.source
        captions = captions._replace(texts=texts, source=source)
    return captions


def _rules(config: run_config.Config) -> Rules:
    return Rules(**{key: getattr(config, key) for key in Rules._fields})


def _check(
    picture: str,
    prompts: Sequence[str],
    tokenizer: PromptTokenizer,
    config: CaptionKeys,
) -> None:
    """Raises `UserError` for a prompt without the word; warns of one that is long."""
    about = f"caption of {one_line(picture)}"
    fits = [tokenizer.fit(prompt) for prompt in prompts]
    for prompt, fit in zip(prompts, fits, strict=True):
        if not fit.has_word:
            marks = f"[name] or {SLOT}"
            if config.trigger_word:
                marks = f"trigger_word {shown(config.trigger_word)}, {marks}"
            raise UserError(
                f"{about}: expected {marks} where the new word goes, found "
                f"{shown(prompt)}; write it there, or put {SLOT} into caption_prefix"
            )
        if fit.lost is not None:
            forward = "move the word forward"
            if config.shuffle_caption:
                forward = "keep the word in front with keep_tokens"
            raise UserError(
                f"{about}: {shown(prompt)} has {fit.tokens} tokens with its start and "
                f"end marks and the limit is {tokenizer.length}: {fit.lost!r} would be "
                f"cut off; shorten it, or {forward}"
            )
    longest = max(fits, key=lambda fit: fit.tokens)
    if longest.cut_off:
        _log.warning(
            "%s has up to %d tokens with its start and end marks and the limit is %d: "
            "%r is cut off; shorten it",
            about,
            longest.tokens,
            tokenizer.length,
            shortened(longest.cut_off),
        )


def _tell(
    config: run_config.Config,
    captions: Captions,
    pictures: Sequence[str],
    prompts: Sequence[str],
    templates: Sequence[str],
) -> None:
    """What captions were read and what is odd about them; of templates, nothing."""
    for note in captions.notes:
        _log.warning("caption_source: %s", note)
    pairs = zip(pictures, captions.texts, strict=True)
    without = [name for name, text in pairs if not text]
    if without and templates and captions.source != "none":
        _log.warning(
            "caption_source: no caption for %s; templates take their place",
            listed(without),
        )
    if prompts:
        _log.info(
            "caption_source: %s, %d prompts such as %s; with none they are templates",
            captions.source,
            len(prompts),
            shown(prompts[0]),
        )
        return
    idle = [
        key
        for key, field in CaptionKeys.model_fields.items()
        if key not in ("caption_source", "caption_dropout_rate")
        and getattr(config, key) != field.default
    ]
    if idle:
        _log.warning("%s: no effect without captions", ", ".join(idle))
