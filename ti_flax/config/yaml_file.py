"""Reads a configuration file, refusing doubled keys."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ti_flax.runtime import arguments
from ti_flax.runtime.errors import UserError, one_line

_RECIPES = Path(__file__).parent / "recipes"  # configs/ has links to them


def recipes() -> list[str]:
    """The names of the configuration files of the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def find(file: Path) -> Path:
    """The file, or the recipe of that name where there is no such file.

    Raises `UserError` for a name that is neither, and for a recipe's file that is not
    there, as `configs/cat_toy.yaml` is only in the repository.
    """
    if file.suffix and not file.exists() and file.stem in recipes():
        raise UserError(
            f"config: no file {str(file)!r}; the package has this recipe: "
            f"--config {file.stem}"
        )
    if file.suffix or len(file.parts) != 1 or file.is_file():
        return file
    names = recipes()
    if file.name not in names:
        hint = arguments.nearest(file.name, names, "a path has an ending")
        raise UserError(
            f"config: expected a file, or a recipe of {', '.join(names)}, found "
            f"{str(file)!r}; {hint}"
        )
    return _RECIPES / f"{file.name}.yaml"


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


def read_yaml(
    path: Path, known: Collection[str], foreign: Collection[str] = ()
) -> dict[str, Any]:
    """The keys and values of a file; it may have those of `known` and of `foreign`.

    Raises `UserError` for a file that is no such mapping, or an unknown key.
    """
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
    for key in content:
        if key not in known and key not in foreign:
            hint = arguments.nearest(
                str(key), known, arguments.nearest(str(key), foreign)
            )
            raise UserError(f"{path}: unknown key {key!r}; {hint}")
    return content
