"""The schema of configuration files: what an editor says is what a run says."""

import json
import re
from pathlib import Path
from typing import ClassVar, get_args

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from ti_flax.config import (
    dataset_config,
    foreign_keys,
    foreign_names,
    schema,
    yaml_file,
)
from ti_flax.config.concepts import ALL_GROUPS
from ti_flax.config.run_config import Config

SHIPPED = Path(schema.__file__).with_suffix(".json")
RECIPES = sorted((SHIPPED.parent / "recipes").glob("*.yaml"))
MINIMAL = {
    "pretrained_model_name_or_path": "m",
    "train_data_dir": "d",
    "placeholder_token": "<a>",
}
# Of which a run refuses nothing.
_SECRET = "hub_token"
PROBES = [-1, 0, 1, 2, 3, 8, 12, 2.0, 0.5, 1.5, 64, 80, 1e12, -0.25, 1e-9]
PROBES += [True, None, "word", [], ["word"], [1], {"a": 1}]


class Editors(yaml.SafeLoader):
    """YAML 1.2, which editors read (yaml.org/spec/1.2.2, 10.3.2 Core Schema)."""

    yaml_implicit_resolvers: ClassVar = {}


CORE = {
    "bool": "true|True|TRUE|false|False|FALSE",
    "null": "null|Null|NULL|~|",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}
for name, pattern in CORE.items():
    Editors.add_implicit_resolver(
        f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), None
    )


@pytest.fixture(scope="module")
def validator():
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    kind = jsonschema.validators.validator_for(shipped)
    assert kind is jsonschema.Draft7Validator
    kind.check_schema(shipped)
    return kind(shipped)


def test_the_shipped_schema_is_what_the_command_writes():
    assert SHIPPED.read_text(encoding="utf-8") == schema.text() + "\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path, validator):
    content = yaml.load(path.read_text(encoding="utf-8"), Editors)
    # As a run reads it, whose YAML takes 2e-3 for a text.
    assert content.keys() == yaml_file.read_yaml(path, Config.model_fields).keys()
    validator.validate(content)


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == yaml_file.recipes()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sead": 3}, "'sead' was unexpected"),
        ({"seed": "three"}, "'three' is not of type 'integer'"),
        ({"seed": 1.5}, "1.5 is not of type 'integer'"),
        ({"resolution": 100}, "100 is not a multiple of 8"),
        ({"train_batch_size": 0}, "0 is less than the minimum of 1"),
        ({"train_batch_size": 2**20}, "greater than the maximum of 16384"),
        ({"random_flip": "maybe"}, "'maybe' is not of type 'boolean'"),
        ({"attention": "flash"}, "'flash' is not one of"),
        ({"placeholder_token": ""}, "'' should be non-empty"),
        ({"sweep": {"sead": [1]}}, "'sead' is not one of"),
        ({"sweep": {"seed": 1}}, "1 is not of type 'array'"),
        (["seed"], "['seed'] is not of type 'object'"),
    ],
    ids=str,
)
def test_a_mistake_is_marked(given, said, validator):
    with pytest.raises(jsonschema.ValidationError, match=re.escape(said)):
        validator.validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"concepts": "list.yaml", "slots": None, "skip_bad_concepts": True},
        {"sweep": {"learning_rate": [0.001, 0.005], "validation_prompt": ["{}"]}},
        {"sweep": ["learning_rate=0.001,0.005"]},
        {"dataset_config": "dataset.toml"},
        {"validation_prompt": "a <toy>", "subsets": ["2:a", "b"]},
        # Told by a run, and passed over.
        {"num_train_epochs": 10},
    ],
    ids=str,
)
def test_what_a_run_reads_is_valid(given, validator):
    validator.validate(given)


def test_every_key_has_a_description_and_no_other_is_there(validator):
    properties = validator.schema["properties"]
    keys = [key for group in ALL_GROUPS.values() for key in group.model_fields]
    known = [*keys, dataset_config.KEY]
    foreign = {
        name: one
        for name, one in foreign_keys.NAMES.items()
        if not isinstance(one, foreign_names.Refused)
    }
    assert sorted(properties) == sorted([*known, *foreign])
    for key in known:
        assert len(properties[key]["description"]) > 10, key
    for name, one in foreign.items():
        ignored = isinstance(one, foreign_names.Ignored)
        told = "is ignored: " if ignored else "is another trainer's name"
        assert properties[name]["deprecationMessage"].startswith(told)


def is_refused(key, value):
    """Whether a run refuses it for itself, whatever the other keys are."""
    try:
        Config(**{**MINIMAL, key: value})
    except ValidationError as error:
        return any(problem["loc"][:1] == (key,) for problem in error.errors())
    return False


@pytest.mark.parametrize("key", [key for key in Config.model_fields if key != _SECRET])
def test_types_and_limits_are_a_runs(key, validator):
    annotation = Config.model_fields[key].annotation
    is_switch = bool in (annotation, *get_args(annotation))
    for value in PROBES:
        # Which a run takes for false and true.
        if not (is_switch and type(value) in (int, float) and value in (0, 1)):
            refused = bool([*validator.iter_errors({key: value})])
            assert refused == is_refused(key, value), value
