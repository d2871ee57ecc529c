"""The ways of learning that the benchmark compares, by name."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ti_flax.config.many_keys import OWN
from ti_flax.config.objective_keys import ObjectiveKeys
from ti_flax.config.run_config import Config
from ti_flax.config.start_keys import StartKeys
from ti_flax.config.stopping_keys import StoppingKeys
from ti_flax.config.training_keys import OptimizerKeys
from ti_flax.runtime import arguments

# Keys of a run that a method may give another value: all that say how a vector is
# learned. Of another seed, words would draw other examples, and were no pairs; what
# they start from is each concept's own.
KEYS = frozenset(
    {
        *OptimizerKeys.model_fields,
        *ObjectiveKeys.model_fields,
        *StoppingKeys.model_fields,
        *StartKeys.model_fields,
        "unmasked_weight",
        "unmasked_probability",
        "normalize_masked_area_loss",
    }
    - {"seed", "initializer_token", "initializer_embedding", "start_tokens"}
)
# Groups of words that no method learned: what concepts start from, what they are in
# words, what the model knows, and the targets of either as they are drawn.
INITIALIZER, DESCRIBED, NOUN = "initializer", "described", "noun"
DRAWN, DRAWN_NOUN = "drawn", "drawn noun"
OTHERS = (INITIALIZER, DESCRIBED, NOUN, DRAWN, DRAWN_NOUN)
_SHAPE = "NAME:KEY=VALUE,KEY=VALUE"


class Method(NamedTuple):
    """A way of learning.

    `keys` are what differs from the benchmark's settings, as on a command line.
    `teaching`: a picture is learned with the built-in templates, with captions that say
    its background, or with a mask that leaves that out.
    """

    name: str
    keys: Mapping[str, str] = {}
    teaching: Literal["templates", "captions", "masks"] = "templates"


DEFAULT = Method("default")
METHODS = {
    method.name: method
    for method in (
        DEFAULT,
        Method("captions", teaching="captions"),
        Method("masks", teaching="masks"),
        Method("constant", {"lr_scheduler": "constant"}),
        Method("keep_best", {"lr_scheduler": "constant", "keep": "best"}),
        Method("min_snr", {"snr_gamma": "5"}),
        Method("beta2_0.99", {"adam_beta2": "0.99"}),
        Method("free", {"hold_row_norm": "none"}),
        Method("starts", {"num_starts": "4"}),
        Method(
            "short",
            {
                "initializer_scale": "0.25",
                "learning_rate": "6e-3",
                "lr_scheduler": "warmup_stable_decay",
            },
        ),
        Method(
            "directional",
            {
                "optimizer": "directional",
                "hold_row_norm": "initializer",
                "learning_rate": "0.03",
            },
        ),
        Method("stratified", {"stratified_timesteps": "true"}),
        Method("stable_decay", {"lr_scheduler": "warmup_stable_decay"}),
        Method("median", {"hold_row_norm": "median"}),
        # diffusers' textual_inversion.py, as its documentation starts it: a rate of
        # 5e-4 times the batch. Its templates, 27 like ours, are worded otherwise.
        Method(
            "diffusers",
            {
                "learning_rate": "5e-4",
                "scale_lr": "true",
                "lr_scheduler": "constant",
                "adam_weight_decay": "0.01",
                "hold_row_norm": "none",
                "initializer_jitter": "0",
            },
        ),
    )
}


def read(text: str) -> Method:
    """A method of the table by its name, or one of one's own as in `_SHAPE`.

    Raises `ValueError`: what was expected instead.
    """
    name, colon, settings = text.partition(":")
    if not colon:
        if name not in METHODS:
            raise ValueError(
                f"expected one of {', '.join(METHODS)}, or {_SHAPE}, found {text!r}"
            )
        return METHODS[name]
    # An @ and a count of steps follow it in the name of a group.
    if not name or "@" in name or name in (*METHODS, *OTHERS):
        raise ValueError(
            f"expected a name that is new, without @, before the colon of {text!r}"
        )
    pairs = [setting.partition("=") for setting in settings.split(",")]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"expected {_SHAPE}, found {text!r}")
        if key not in KEYS:
            raise ValueError(
                f"expected a key of how a vector is learned, found {key!r}; "
                f"{arguments.nearest(key, sorted(KEYS))}"
            )
    return Method(name, {key: value for key, _, value in pairs})


def together(configs: Mapping[str, Config]) -> list[list[str]]:
    """The methods in groups, each of one compiled step.

    What a slot may have of its own is no part of that; but whether the fixed loss is
    evaluated is, and whether starts race, which others need not wait for.
    """
    shared = sorted(KEYS - OWN)
    groups: dict[tuple, list[str]] = {}
    for name, config in configs.items():
        key = (
            *(getattr(config, key) for key in shared),
            config.window,
            config.num_starts > 1,
        )
        groups.setdefault(key, []).append(name)
    return [*groups.values()]
