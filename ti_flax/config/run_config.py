"""The configuration of a run, read from YAML and the command line.

A value comes from, the later winning: default, preset, YAML file, command line.
`config_keys` has the keys.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from ti_flax.config import command_line, diffusers_flags
from ti_flax.config.run_keys import (
    GROUPS,
    PRESETS,
    ConceptKeys,
    DataKeys,
    HostKeys,
    ModelKeys,
    ReportKeys,
    ResultKeys,
    TrainingKeys,
)
from ti_flax.runtime.errors import UserError, one_line

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)

_FOREIGN_FLAGS = tuple(diffusers_flags.NO_MEANING)

# What pydantic says in its own terms.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "path_type": "a path",
    "string_too_short": "a text that is not empty",
    "string_type": "a text (numbers, yes and no need quotes)",
}


# pydantic lists the fields of the last base first.
class Config(
    HostKeys, ResultKeys, ReportKeys, TrainingKeys, DataKeys, ConceptKeys, ModelKeys
):
    """All keys of a run, checked and frozen."""

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        # str: a value of a wrong type is for the field's own check, not for a lookup.
        return {**PRESETS.get(str(given.get("preset")), {}), **given}

    @model_validator(mode="after")
    def _pictures_survive(self) -> "Config":
        output_dir, train_data_dir = (
            Path(os.path.abspath(folder))
            for folder in (self.output_dir, self.train_data_dir)
        )
        if train_data_dir.is_relative_to(output_dir):
            raise ValueError(
                "expected an output_dir that does not hold train_data_dir, found "
                f"{str(self.output_dir)!r} and {str(self.train_data_dir)!r}; "
                "choose another output_dir"
            )
        return self


def load_config(argv: Sequence[str]) -> Config:
    """Reads `--config FILE` and the `--key value` that override it.

    `--help` and `--print_config` print and end the process with code 0.

    Raises:
      UserError: what is wrong with the command line, the file or a value, in one line.
    """
    given = command_line.parse(argv, GROUPS, _FOREIGN_FLAGS)
    from_file = _read_yaml(given.config) if given.config else {}
    config = validate(
        Config,
        diffusers_flags.without_foreign_flags({**from_file, **given.values}),
        "in the --config file or with --key value",
    )
    if config.lr_warmup_steps and config.lr_scheduler == "constant":
        _log.warning(
            "lr_warmup_steps has no effect with lr_scheduler constant; "
            "constant_with_warmup is the one that warms up"
        )
    if given.print_config:
        print(dump_yaml(config), end="")
        raise SystemExit(0)
    return config


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


def validate(model: type[Model], given: Mapping[str, Any], place: str) -> Model:
    """Returns `given` as the model; `place` is where a missing key can be set.

    Raises:
      UserError: what is wrong with which key, in one line.
    """
    for key in given:
        if key not in model.model_fields:
            hint = command_line.nearest(key, model.model_fields)
            raise UserError(f"unknown key {key!r}; {hint}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(_one_line(error, place)) from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; here that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in names[:index]:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes, impossible dates
        reason = one_line(error)
        raise UserError(f"{path} is not valid YAML: {reason}") from error
    if content is None:  # an empty file
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected lines of `key: value`, found a {type(content).__name__}"
        )
    known = (*Config.model_fields, *_FOREIGN_FLAGS)
    for key in content:
        if key not in known:
            hint = command_line.nearest(str(key), known)
            raise UserError(f"{path}: unknown key {key!r}; {hint}")
    return content


def _one_line(error: ValidationError, place: str) -> str:
    problems = error.errors(include_url=False)
    missing = [str(p["loc"][0]) for p in problems if p["type"] == "missing"]
    if missing:
        return f"required but missing: {', '.join(missing)}; set them {place}"
    problem = problems[0]
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
    else:
        fallback = problem["msg"].removeprefix("Input should be ")
        expected = _EXPECTED.get(problem["type"], fallback)
        text = f"expected {expected}, found {problem['input']!r}"
    others = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
    return ": ".join([*map(str, problem["loc"]), text]) + others
