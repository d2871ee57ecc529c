"""The configuration of a run, read from YAML and the command line.

A value comes from, the later winning: default, preset, dataset_config, YAML file,
command line.
`run_keys` and `training_keys` have the keys.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, field_validator, model_validator

from ti_flax.config import (
    command_line,
    dataset_config,
    foreign_keys,
    signatures,
    validation,
    yaml_file,
)
from ti_flax.config.bucket_keys import BucketKeys
from ti_flax.config.caption_keys import CaptionKeys
from ti_flax.config.checkpoint_keys import CheckpointKeys
from ti_flax.config.mask_keys import MaskKeys
from ti_flax.config.presets import PRESETS
from ti_flax.config.run_keys import (
    GROUPS,
    ConceptKeys,
    DataKeys,
    HostKeys,
    ModelKeys,
    ReportKeys,
    ResultKeys,
)
from ti_flax.config.start_keys import StartKeys
from ti_flax.config.training_keys import OutputKeys, TrainingKeys

_log = logging.getLogger(__name__)


# pydantic lists the fields of the last base first.
class Config(
    HostKeys,
    ResultKeys,
    ReportKeys,
    OutputKeys,
    TrainingKeys,
    MaskKeys,
    CaptionKeys,
    BucketKeys,
    DataKeys,
    StartKeys,
    ConceptKeys,
    CheckpointKeys,
    ModelKeys,
):
    """All keys of a run, checked and frozen."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        # str: a value of a wrong type is for the field's own check, not for a lookup.
        return {**PRESETS.get(str(given.get("preset")), {}), **given}

    @field_validator("validation_prompt")
    @classmethod
    def _put_the_word_in(cls, prompts: tuple[str, ...], info: Any) -> tuple[str, ...]:
        # It has no value here if it is wrong itself.
        word = info.data.get("placeholder_token", "{}")
        return tuple(prompt.replace("{}", word) for prompt in prompts)

    @model_validator(mode="after")
    def _pictures_survive(self) -> "Config":
        # By their names and by what links lead to: either may be written over.
        for resolve in (os.path.abspath, os.path.realpath):
            output_dir = Path(resolve(self.output_dir))
            for key, folder in self._folders_of_pictures():
                if Path(resolve(folder)).is_relative_to(output_dir):
                    raise ValueError(
                        f"expected an output_dir that does not hold {key}, found "
                        f"{str(self.output_dir)!r} and {str(folder)!r}; choose another "
                        "output_dir"
                    )
        return self

    def _folders_of_pictures(self) -> Iterator[tuple[str, Path]]:
        yield "train_data_dir", self.train_data_dir
        for subset in self.folders:
            yield "a folder of subsets", self.train_data_dir / subset.path


# What `help(Config)` shows.
Config.__doc__ = f"{Config.__doc__}\n\n{command_line.describe(GROUPS)}"
Config.__signature__ = signatures.of_keys(Config)


class Given(NamedTuple):
    """What the command line and the files ask for, not checked yet."""

    keys: dict[str, Any]
    print_config: bool


# Where a key that is missing can be set.
PLACE = "in the --config file or with --key value"


def load_config(
    argv: Sequence[str], program: command_line.Program = command_line.TRAIN
) -> Config:
    """Reads `--config FILE` and the `--key value` that override it.

    Either may name a `dataset_config`, which becomes the keys that it means.

    `--help`, which is that of `program`, and `--print_config` print and end the process
    with code 0.

    Raises:
      UserError: what is wrong with the command line, the file or a value, in one line.
    """
    return make_config(read_keys(argv, program, GROUPS))


def read_keys(
    argv: Sequence[str],
    program: command_line.Program,
    groups: Mapping[str, type[BaseModel]],
) -> Given:
    """The keys of the file and of the command line, whose groups are `groups`.

    `--help` prints and ends the process with code 0.

    Names of other trainers become the keys that they mean.

    Raises:
      UserError: an unknown key, a flag without value, a file that is none, or a name
        of another trainer that has no key.
    """
    foreign = foreign_keys.NAMES.keys()
    given = command_line.parse(argv, groups, foreign, program)
    fields = [key for group in groups.values() for key in group.model_fields]
    known = (*fields, dataset_config.KEY)
    from_file, told = {}, set[str]()
    if given.config is not None:
        from_file = yaml_file.read_yaml(yaml_file.find(given.config), known, foreign)
    keys = [foreign_keys.translated(each, told) for each in (from_file, given.values)]
    return Given(keys[0] | keys[1], given.print_config)


def make_config(given: Given) -> Config:
    """The configuration of one concept, checked; or it is printed, and all ends."""
    config = validation.validate(Config, dataset_config.under(given.keys), PLACE)
    if warms_up_in_vain(config):
        _log.warning(IN_VAIN)
    if given.print_config:
        print(dump_yaml(config), end="")
        raise SystemExit(0)
    return config


IN_VAIN = (
    "lr_warmup_steps has no effect with lr_scheduler constant; constant_with_warmup is "
    "the one that warms up"
)


def warms_up_in_vain(config: Config) -> bool:
    """Whether to say `IN_VAIN` of it."""
    return config.lr_warmup_steps > 0 and config.lr_scheduler == "constant"


def dump_yaml(config: Config) -> str:
    """Returns the keys as YAML under their groups; `load_config` reads it back.

    Left out are those that tell the hosts of one job apart.
    """
    values = config.model_dump(mode="json")
    return "\n".join(
        f"# {title}\n"
        + yaml.safe_dump(
            {key: values[key] for key in group.model_fields if key in values},
            sort_keys=False,
            allow_unicode=True,
        )
        for title, group in GROUPS.items()
    )
