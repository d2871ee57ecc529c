"""The options of sd-scripts' `dataset.toml`, and what each is here.

As `library/config_util.py` and `docs/config_README-en.md` of kohya-ss/sd-scripts list
them (48d368f, February 2026).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ti_flax.config.fields import MOST_STEPS

GENERAL, DATASETS, SUBSETS = "[general]", "[[datasets]]", "[[datasets.subsets]]"
_DATASET = (GENERAL, DATASETS)
_SUBSET = (GENERAL, DATASETS, SUBSETS)
_OWN = (SUBSETS,)


class Kind(NamedTuple):
    """The values that an option may have: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    # To Python, true is the number 1.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_pair(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(holds, value))


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind(
    f"a whole number of at most {MOST_STEPS}",
    lambda value: _is_whole(value) and abs(value) <= MOST_STEPS,
)
NUMBER = Kind("a number", _is_number)
TEXT = Kind("a text", lambda value: isinstance(value, str) and "\0" not in value)
PLACE = Kind("a path", lambda value: TEXT.holds(value) and value != "")
SIZE = Kind(
    "a whole number, or width and height in brackets",
    lambda value: _is_whole(value) or _is_pair(value, _is_whole),
)
RANGE = Kind("two numbers in brackets", lambda value: _is_pair(value, _is_number))
TABLE = Kind("a table", lambda value: isinstance(value, dict))


class Option(NamedTuple):
    """An option: where it may stand, what it may be, what silence means there."""

    tables: tuple[str, ...]
    kind: Kind
    default: Any = None


# Those with a key of the same meaning.
SAME = {
    "resolution": Option(_DATASET, SIZE, None),
    "batch_size": Option(_DATASET, WHOLE, 1),
    "enable_bucket": Option(_DATASET, SWITCH, False),
    "min_bucket_reso": Option(_DATASET, WHOLE, 256),
    "max_bucket_reso": Option(_DATASET, WHOLE, 1024),
    "bucket_reso_steps": Option(_DATASET, WHOLE, 64),
    "bucket_no_upscale": Option(_DATASET, SWITCH, False),
    "flip_aug": Option(_SUBSET, SWITCH, False),
    "random_crop": Option(_SUBSET, SWITCH, False),
    "shuffle_caption": Option(_SUBSET, SWITCH, False),
    "keep_tokens": Option(_SUBSET, WHOLE, 0),
    "keep_tokens_separator": Option(_SUBSET, TEXT, ""),
    "caption_separator": Option(_SUBSET, TEXT, ","),
    "caption_prefix": Option(_SUBSET, TEXT, ""),
    "caption_suffix": Option(_SUBSET, TEXT, ""),
    "caption_dropout_rate": Option(_SUBSET, NUMBER, 0),
    "caption_tag_dropout_rate": Option(_SUBSET, NUMBER, 0),
    "enable_wildcard": Option(_SUBSET, SWITCH, False),
    "alpha_mask": Option(_SUBSET, SWITCH, False),
}
# Those of them whose key has another name.
RENAMED = {"batch_size": "train_batch_size", "flip_aug": "random_flip"}
# Of these an empty text says nothing, as none here.
EMPTY_IS_NONE = ("keep_tokens_separator", "caption_prefix", "caption_suffix")

# `caption_source` of a caption_extension.
SOURCES = {".txt": "txt", ".caption": "caption"}

# Those that `dataset_config` makes keys of by a rule of their own.
OWN_RULE = {
    "image_dir": Option(_OWN, PLACE),
    "num_repeats": Option(_SUBSET, COUNT, 1),
    "is_reg": Option(_OWN, SWITCH, False),
    "caption_extension": Option(_SUBSET, TEXT, ".caption"),
    "metadata_file": Option(_OWN, PLACE),
    "conditioning_data_dir": Option(_OWN, PLACE),
}

# Those without a key, and why.
_KEPT = "pictures are encoded once, before training, and stay on the device"
_SETS_ASIDE = (
    "no pictures are set aside; the loss on a fixed set and validation_prompt show how "
    "a run goes"
)
NO_MEANING = {
    "class_tokens": (
        Option(_SUBSET, TEXT, ""),
        "a picture without a caption is trained with templates around the new word; "
        "where captions hold these words, trigger_word gives their place to it",
    ),
    "color_aug": (
        Option(_SUBSET, SWITCH, False),
        "pictures keep their colours, which belong to what is learned",
    ),
    "face_crop_aug_range": (
        Option(_SUBSET, RANGE),
        "no faces are looked for; random_crop learns from several crops",
    ),
    "token_warmup_min": (
        Option(_SUBSET, WHOLE, 1),
        "captions have all their tags from the first step",
    ),
    "token_warmup_step": (
        Option(_SUBSET, NUMBER, 0),
        "captions have all their tags from the first step",
    ),
    "secondary_separator": (
        Option(_SUBSET, TEXT, ""),
        "it stays in captions as it is; write tags that belong together without it",
    ),
    "caption_dropout_every_n_epochs": (
        Option(_SUBSET, WHOLE, 0),
        "a run has no epochs; caption_dropout_rate drops captions at random",
    ),
    "resize_interpolation": (
        Option(_SUBSET, TEXT, ""),
        "pictures are resized by Pillow's bicubic filter, as diffusers does",
    ),
    "custom_attributes": (
        Option(_SUBSET, TABLE, {}),
        "no part of Textual Inversion reads them",
    ),
    "network_multiplier": (
        Option(_DATASET, NUMBER, 1),
        "it scales a LoRA network, and none is trained here",
    ),
    "validation_seed": (Option(_SUBSET, WHOLE, 0), _SETS_ASIDE),
    "validation_split": (Option(_SUBSET, NUMBER, 0), _SETS_ASIDE),
    "cache_info": (Option(_SUBSET, SWITCH, False), "pictures are read once"),
    "cache_latents": (Option(_SUBSET, SWITCH, False), _KEPT),
    "cache_latents_to_disk": (Option(_SUBSET, SWITCH, False), _KEPT),
    "skip_cache_check": (Option(_SUBSET, SWITCH, False), _KEPT),
    "max_token_length": (
        Option(_SUBSET, WHOLE, 75),
        "a prompt has the tokens that the model reads, 77 with its marks",
    ),
    "prior_loss_weight": (
        Option(_SUBSET, NUMBER, 1),
        "is_reg pictures are left out, so there is no loss of theirs to weigh",
    ),
    "debug_dataset": (
        Option(_SUBSET, SWITCH, False),
        "`python -m ti_flax.data --dataset_config FILE` says what is read",
    ),
}

OPTIONS: dict[str, Option] = {
    **SAME,
    **OWN_RULE,
    **{name: option for name, (option, _) in NO_MEANING.items()},
}
