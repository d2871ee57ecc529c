"""Checks keys, and says in one line what is wrong with them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ti_flax.runtime import arguments
from ti_flax.runtime.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

# Characters of a wrong value that are shown.
_LONGEST_VALUE = 80
# What pydantic says in its own terms.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of a few digits",
    "int_type": "a whole number",
    "path_type": "a path",
    "string_too_short": "a text that is not empty",
    "string_type": "a text (numbers, yes and no need quotes)",
}


def validate(model: type[Model], given: Mapping[str, Any], place: str) -> Model:
    """Returns `given` as the model; `place` is where a missing key can be set.

    Raises:
      UserError: what is wrong with which key, in one line.
    """
    for key in given:
        if key not in model.model_fields:
            hint = arguments.nearest(key, model.model_fields)
            raise UserError(f"unknown key {key!r}; {hint}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(_one_line(error, place)) from error


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
        text = f"expected {expected}, found {_shown(problem['input'])}"
    others = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
    return ": ".join([*map(str, problem["loc"]), text]) + others


def _shown(found: object) -> str:
    text = repr(found)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
