"""A command line made out of pydantic models: one `--key value` for each field."""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from ti_flax.config import dataset_config, yaml_file
from ti_flax.runtime import arguments

_METAVARS = {
    bool: "true|false",
    int: "N",
    float: "X",
    str: "TEXT",
    SecretStr: "TEXT",
    Path: "PATH",
}

_EPILOG = """\
A switch is turned off by --KEY false or --no_KEY; `none` empties a key that may be
empty. A key of several values takes them in a row, or is given several times. Paths
start at the current folder."""

_FILE_EPILOG = """ \
The command line wins over the YAML file, that over dataset_config, that over the
preset, the preset over the defaults."""

# With the key before it, what a line of 80 characters has room for.
_LONGEST_METAVAR = 50
# The key of --json, which would hide a method; without a value, as files follow it.
JSON = "json_"
_IN = " " * 6

Values = dict[str, str | list[str] | None]


class Program(NamedTuple):
    """What `--help` says of a command that reads the keys of a run."""

    module: str  # python -m ti_flax.<module>
    usage: str  # its arguments
    defaults: Mapping[str, Any]  # of its own file, before those of the keys


TRAIN = Program("train", "--config cat_toy [--key value ...]", {})


class CommandLine(NamedTuple):
    """What was given: the file's name, what to do, and each key's text."""

    config: Path | None
    print_config: bool
    values: Values


def parse(
    argv: Sequence[str],
    groups: Mapping[str, type[BaseModel]],
    foreign_flags: Set[str],
    program: Program = TRAIN,
) -> CommandLine:
    """Reads `--config`, `--print_config`, `--dataset_config` and a flag of every field.

    Args:
      argv: the arguments without the program's name.
      groups: title in `--help` -> model with the fields that stand under it.
      foreign_flags: flags that `--help` does not show, with or without values.
      program: whose command line it is.

    Raises:
      UserError: an unknown flag, or a flag that lacks its value.
      SystemExit: `--help`, with code 0.
    """
    parser = _make_parser(program, _EPILOG + _FILE_EPILOG, groups)
    parser.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help="YAML file of `key: value`, or a recipe of the package: "
        + ", ".join(yaml_file.recipes()),
    )
    parser.add_argument(
        "--dataset_config",
        metavar="FILE",
        help=f"{dataset_config.ABOUT}; may stand in the YAML file, too",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=False,
        help="print every key with its resolved value as YAML, and end",
    )
    for flag in foreign_flags:
        parser.add_argument(f"--{flag}", nargs="*", help=argparse.SUPPRESS)
    given = _read(parser, argv, groups)
    given |= {flag: _single(given[flag]) for flag in foreign_flags & given.keys()}
    return CommandLine(given.pop("config"), given.pop("print_config"), given)


def parse_keys(
    argv: Sequence[str],
    groups: Mapping[str, type[BaseModel]],
    module: str,
    usage: str,
    positional: str = "",
) -> Values:
    """Reads `--key value` of every field, where there is no configuration file.

    Args:
      argv: the arguments without the program's name.
      groups: title in `--help` -> model with the fields that stand under it.
      module: the entry point, `python -m ti_flax.<module>`.
      usage: its arguments, as the first line of `--help` shows them.
      positional: the keys that are given without their names, which `usage` begins
        with.

    Raises:
      UserError: an unknown flag, or a flag that lacks its value.
      SystemExit: `--help`, with code 0.
    """
    program = Program(module, usage, {})
    parser = _make_parser(program, _EPILOG, groups, positional)
    return _read(parser, argv, groups)


def describe(groups: Mapping[str, type[BaseModel]]) -> str:
    """The keys under their titles, for `help()`: values, default, description."""
    nothing = Program("", "", {})
    lines = []
    for title, group in groups.items():
        lines += ["", f"{title}:"]
        for key, field in _fields(group):
            lines.append(
                f"  {key} ({_metavar(field)}; {_default(key, field, nothing)})"
            )
            text = field.description or ""
            lines += textwrap.wrap(text, 76, initial_indent=_IN, subsequent_indent=_IN)
    return "\n".join(lines[1:])


def _make_parser(
    program: Program,
    epilog: str,
    groups: Mapping[str, type[BaseModel]],
    positional: str = "",
) -> arguments.Parser:
    name = f"python -m ti_flax.{program.module}"
    parser = arguments.Parser(
        prog=name,
        usage=textwrap.fill(
            f"{name} {program.usage}",
            width=80 - len("usage: "),
            subsequent_indent="  ",
            break_on_hyphens=False,
        ),
        epilog=epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # only what was given is in the result
    )
    for title, group in groups.items():
        section = parser.add_argument_group(title)
        for key, field in _fields(group):
            if key in positional.split():
                metavar = program.usage.split()[positional.split().index(key)]
                many = "+" if _is_several(field) else None
                section.add_argument(
                    key, nargs=many, metavar=metavar, help=field.description
                )
            else:
                _add_key(section, key, field, _default(key, field, program))
    return parser


def _read(
    parser: arguments.Parser,
    argv: Sequence[str],
    groups: Mapping[str, type[BaseModel]],
) -> dict[str, Any]:
    fields = {key: f for group in groups.values() for key, f in _fields(group)}
    return {
        key: None if key in fields and means_none(fields[key], value) else value
        for key, value in vars(parser.parse(argv)).items()
    }


def _single(values: list[str]) -> str | list[str]:
    """A foreign flag's value: a switch has none."""
    match values:
        case []:
            return "true"
        case [value]:
            return value
    return values


def _default(key: str, field: FieldInfo, program: Program) -> str:
    """What the help says of a key that is not given."""
    if key not in program.defaults and field.is_required():
        return "required"
    return f"default: {_shown(program.defaults.get(key, field.default))}"


def _add_key(
    section: argparse._ArgumentGroup, key: str, field: FieldInfo, default: str
) -> None:
    text = f"{field.description} ({default})".replace("%", "%%")
    metavar = _metavar(field)
    if len(metavar) > _LONGEST_METAVAR:
        text, metavar = f"{metavar.replace('|', ', ')}: {text}", "NAME"
    if _is_several(field):
        section.add_argument(
            f"--{key}", nargs="+", action="extend", metavar=metavar, help=text
        )
        return
    if bool not in (field.annotation, *get_args(field.annotation)):
        section.add_argument(f"--{key}", metavar=metavar, help=text)
        return
    if key == JSON:
        section.add_argument(
            "--json", dest=key, action="store_const", const="true", help=text
        )
        return
    section.add_argument(
        f"--{key}", nargs="?", const="true", metavar=metavar, help=text
    )
    section.add_argument(
        f"--no_{key}",
        f"--no-{key}",
        dest=key,
        action="store_const",
        const="false",
        help=argparse.SUPPRESS,
    )


def _fields(group: type[BaseModel]) -> Iterable[tuple[str, FieldInfo]]:
    return group.model_fields.items()


def _is_optional(field: FieldInfo) -> bool:
    return NoneType in get_args(field.annotation)


def _is_several(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _metavar(field: FieldInfo) -> str:
    wrapped = _is_optional(field) or _is_several(field)
    kind = get_args(field.annotation)[0] if wrapped else field.annotation
    if get_origin(kind) is Annotated:  # each of several has limits
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return _METAVARS[kind]


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return str(default).lower()
    text = " ".join(default) if isinstance(default, tuple) else str(default)
    return text or "empty"


def means_none(field: FieldInfo, given: str | list[str]) -> bool:
    """Whether the text empties the key, rather than being its value."""
    return _is_optional(field) and given.lower() in ("none", "null")
