"""Keys of the captions beside the pictures."""

from typing import Annotated, Literal

from pydantic import Field

from ti_flax.config.fields import Count, Integer, Name, Number, OptionalName, Settings
from ti_flax.config.natures import NOTED, TRAVELS

CaptionSource = Literal["auto", "none", "txt", "caption", "jsonl", "json", "filename"]


class CaptionKeys(Settings):
    """Where captions are, where the word goes in them, what is random in them."""

    # Free on resume: what the captions say has a fingerprint.
    caption_source: Annotated[CaptionSource, NOTED] = Field(
        "auto",
        description="captions from NAME.txt or NAME.caption beside NAME.jpg, "
        "metadata.jsonl, json (kohya's metadata), or filename; auto: the one kind of "
        "file that is there; without captions, prompts are templates",
    )
    trigger_word: Annotated[OptionalName, TRAVELS] = Field(
        None,
        description="word of the captions whose place the new word takes, besides "
        "[name] and {}",
    )
    caption_prefix: Annotated[str | None, TRAVELS] = Field(
        None,
        max_length=1000,
        description="text in front of every caption, with {} for the new word; none: "
        "the new word and a comma, where a caption has no place for it",
    )
    caption_suffix: Annotated[OptionalName, TRAVELS] = Field(
        None, max_length=1000, description="text after every caption"
    )
    caption_lines: Annotated[Literal["each", "first", "join"], TRAVELS] = Field(
        "each",
        description="of a text of several lines: each is a caption, drawn equally "
        "often; or the first alone; or all are one caption",
    )
    caption_separator: Annotated[Name, TRAVELS] = Field(
        ",", max_length=20, description="what stands between the tags of a caption"
    )
    shuffle_caption: Annotated[bool, TRAVELS] = Field(
        False, description="put the tags of a caption in random order"
    )
    keep_tokens: Annotated[Integer, TRAVELS] = Field(
        0,
        ge=0,
        le=1000,
        description="tags that stay in front, neither shuffled nor dropped",
    )
    keep_tokens_separator: Annotated[OptionalName, TRAVELS] = Field(
        None,
        max_length=20,
        description="text such as ||| that stands between the tags to keep and the "
        "others, in place of keep_tokens; a second one ends the others",
    )
    caption_tag_dropout_rate: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        le=1,
        description="chance of each tag to be left out; that of the new word stays",
    )
    caption_dropout_rate: Annotated[Number, TRAVELS] = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance of a prompt to be the empty one, from which nothing is "
        "learned about the new word",
    )
    enable_wildcard: Annotated[bool, TRAVELS] = Field(
        False, description="read {a|b} in captions as one of the two, drawn at random"
    )
    caption_variants: Annotated[Count, TRAVELS] = Field(
        16,
        le=4096,
        description="forms that a caption is drawn in, made before training, where "
        "something in it is random",
    )
